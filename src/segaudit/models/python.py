"""A network that a function of the user's own builds."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

from torch import nn

from segaudit import registry
from segaudit.models.build import Network, reason
from segaudit.types import Segmenter, UserError


def python(name: str, outputs: int, /, **args: Any) -> Network | Segmenter:
    """A network of your own: `file.py:function` or `package.module:function`, called with the spec's args.

    The function (or class) gives a torch.nn.Module, which is wrapped with the spec's preprocess, outputs and
    class_map, or a segaudit Segmenter, which is taken as it is.
    Source: the user's own code.
    """
    if ":" not in name:
        raise UserError(f"model {name!r}: source python takes `file.py:function` or `package.module:function`")
    function = registry.load("model", name)
    registry.check_arguments("model", name, args)
    try:
        made = function(**args)
    except Exception as error:
        raise UserError(f"model {name!r}: {_where(function, error)}: {reason(error)}") from error
    if isinstance(made, Segmenter):
        return made
    if not isinstance(made, nn.Module):
        raise UserError(f"model {name!r} returned a {type(made).__name__}, not a torch.nn.Module")
    return Network(made)


def _where(function: Any, error: Exception) -> str:
    """file:line of the last step in the function's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(inspect.getmodule(function), "__file__", None)
    inside = [frame for frame in frames if frame.filename == file] or frames
    return f"{inside[-1].filename}:{inside[-1].lineno}"
