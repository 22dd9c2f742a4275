"""A network that a function of the user's own builds."""

from __future__ import annotations

from typing import Any

from torch import nn

from segaudit import registry
from segaudit.models.build import Network, reason, where
from segaudit.models.opaque import Opaque
from segaudit.types import Segmenter, UserError


def python(name: str, outputs: int, /, **args: Any) -> Network | Segmenter:
    """A network of your own: `file.py:function` or `package.module:function`, called with the spec's args.

    The function (or class) gives a torch.nn.Module, which is wrapped with the spec's preprocess, outputs and
    class_map, or a segaudit Segmenter, which is taken as it is. It may also give a function of images (a runtime's
    session, a remote service) that has no gradient: N x C x H x W after the spec's preprocess, as a NumPy array or,
    where its parameter is annotated so, a torch.Tensor -> logits or probabilities N x K x H x W, or classes N x H x W.
    Such a model is attacked with `square`, and by images of other models (`transfer: true`).
    Source: the user's own code.
    """
    if ":" not in name:
        raise UserError(f"model {name!r}: source python takes `file.py:function` or `package.module:function`")
    function = registry.load("model", name)
    registry.check_arguments("model", name, args)
    try:
        made = function(**args)
    except Exception as error:
        raise UserError(f"model {name!r}: {where(function, error)}: {reason(error)}") from error
    if isinstance(made, Segmenter):
        return made
    if isinstance(made, nn.Module):
        return Network(made)
    if not callable(made):
        raise UserError(f"model {name!r} returned a {type(made).__name__}, not a torch.nn.Module or a function")
    return Network(Opaque(made, name, outputs))
