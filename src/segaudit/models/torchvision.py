"""The segmentation networks of torchvision."""

from __future__ import annotations

import inspect
from typing import Any

from segaudit import registry
from segaudit.models.build import IMAGENET, Network, reason
from segaudit.types import UserError


def torchvision(name: str, outputs: int, /, **args: Any) -> Network:
    """A network of torchvision.models.segmentation by its name: fcn_resnet50, deeplabv3_resnet50, ...

    Built with random weights unless `weights` (such as `DEFAULT`, 21 outputs) or `weights_backbone` is given, which
    may download. ImageNet mean and std. The auxiliary head, of use in training alone, is left out, and a weights file
    may hold it or not.
    Source: torchvision (PyTorch), needs the extra `models`.
    """
    try:
        from torchvision import models as library
    except ImportError as error:
        raise UserError("model source torchvision needs torchvision: pip install 'segaudit[models]'") from error
    known = library.list_models(module=library.segmentation)
    if name not in known:
        raise UserError(f"torchvision has no {name!r}{registry.suggest(name, known)}; it has: {', '.join(known)}")
    own = [key for key in inspect.signature(library.get_model_builder(name)).parameters if key != "kwargs"]
    for key in args:
        if key not in own:
            raise UserError(f"torchvision {name} has no argument {key!r}{registry.suggest(key, own)}")
    try:
        net = library.get_model(name, **{"weights": None, "weights_backbone": None, "num_classes": outputs, **args})
    except Exception as error:  # from a wrong argument to a failed download
        raise UserError(f"torchvision {name}: {reason(error)}") from error
    if getattr(net, "aux_classifier", None) is not None:
        net.aux_classifier = None
    return Network(net, IMAGENET, unused=("aux_classifier.",))
