"""Networks of segmentation-models-pytorch."""

from __future__ import annotations

import inspect
from typing import Any

from segaudit import registry
from segaudit.models.build import IMAGENET, Network, reason
from segaudit.types import UserError


def smp(name: str, outputs: int, /, **args: Any) -> Network:
    """A network of segmentation_models_pytorch by its class name: Unet, FPN, DeepLabV3Plus, PSPNet, ...

    Built with random weights unless `encoder_weights` is given (which may download). ImageNet mean and std; padded to
    a stride of 32. Arguments that the network lacks are its encoder's, and only `tu-` (timm) encoders take any.
    Source: segmentation_models.pytorch (Iakubovskii), needs the extra `models`.
    """
    try:
        import segmentation_models_pytorch as library
    except ImportError as error:
        raise UserError("model source smp needs segmentation-models-pytorch: pip install 'segaudit[models]'") from error
    known = [model.__name__ for model in library.MODEL_ARCHITECTURES_MAPPING.values()]
    if name not in known:
        raise UserError(f"smp has no network {name!r}{registry.suggest(name, known)}; it has: {', '.join(known)}")
    build = getattr(library, name)
    own = [key for key in inspect.signature(build.__init__).parameters if key not in ("self", "kwargs")]
    for key in args:
        if key not in own and not str(args.get("encoder_name", "")).startswith("tu-"):
            raise UserError(f"smp {name} has no argument {key!r}{registry.suggest(key, own)}; it has: {', '.join(own)}")
    try:
        net = build(**{"encoder_weights": None, "classes": outputs, **args})
    except Exception as error:  # from a wrong argument to a failed download
        raise UserError(f"smp {name}: {reason(error)}") from error
    return Network(net, {**IMAGENET, "stride": 32})
