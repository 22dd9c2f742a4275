"""The networks that the field's comparisons are made of, each in a file of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from segaudit import registry
from segaudit.models.build import Network
from segaudit.models.classic.crf_rnn import crf_rnn
from segaudit.models.classic.deeplab_v2 import deeplab_v2
from segaudit.models.classic.dilatednet import dilatednet
from segaudit.models.classic.enet import enet
from segaudit.models.classic.fcn8s import fcn8s
from segaudit.models.classic.icnet import icnet
from segaudit.models.classic.lenet import lenet
from segaudit.models.classic.resnet20 import resnet20
from segaudit.models.classic.segnet import segnet
from segaudit.models.classic.unet import unet
from segaudit.models.classic.vgg16 import vgg16
from segaudit.types import UserError

SEGMENTERS: dict[str, Callable[..., Network]] = {
    "fcn8s": fcn8s,
    "segnet": segnet,
    "dilatednet": dilatednet,
    "enet": enet,
    "icnet": icnet,
    "deeplab_v2": deeplab_v2,
    "unet": unet,
}
CLASSIFIERS: dict[str, Callable[..., Network]] = {"lenet": lenet, "resnet20": resnet20, "vgg16": vgg16}
NETWORKS = {**SEGMENTERS, "crf_rnn": crf_rnn, **CLASSIFIERS}


def classic(name: str, outputs: int, /, **args: Any) -> Network:
    """A published network, with random weights: fcn8s, segnet, enet, deeplab_v2, crf_rnn, unet, lenet and others.

    Segmentation: `fcn8s`, `segnet`, `dilatednet`, `enet`, `icnet`, `deeplab_v2`, `unet` (GroupNorm, for gradients of
    single images), and `crf_rnn` on top of any of them. Classifiers: `lenet`, `resnet20`, `vgg16`. All take `width`, a
    factor on the paper's channels. Also: `backbone` (fcn8s, deeplab_v2: VGG16 or a ResNet), `backbone_weights` (fcn8s,
    segnet, dilatednet, deeplab_v2, vgg16: a file in torchvision's layout, its head left out), `batch_norm`, `context`
    (dilatednet), `rates`, `scales`, `caffe`, `conversion` (deeplab_v2), `groups` (unet), `channels` of the image (unet,
    lenet, resnet20, vgg16), and for crf_rnn `base`, `base_args` and the mean field's own. ImageNet mean and std.
    Source: Long et al. 2015, Badrinarayanan et al. 2017, Yu & Koltun 2016, Paszke et al. 2016, Zhao et al. 2018,
    Source: Chen et al. 2018, Ronneberger et al. 2015, Zheng et al. 2015, LeCun et al. 1998, He et al. 2016 and
    Source: Simonyan & Zisserman 2015; VGG and ResNet need the extra `models`.
    """
    if name not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise UserError(f"classic has no network {name!r}{registry.suggest(name, NETWORKS)}; it has: {known}")
    own = {key: p.default for key, p in inspect.signature(NETWORKS[name]).parameters.items() if key != "outputs"}
    for key, value in args.items():
        if key not in own:
            near = registry.suggest(key, own)
            raise UserError(f"classic {name} has no argument {key!r}{near}; its arguments: {', '.join(own)}")
        if own[key] is None and key != "base_args" and not isinstance(value, str | None):
            raise UserError(f"classic {name}: {key} must be the path of a file, not {value!r}")
        if isinstance(own[key], bool) and not isinstance(value, bool):
            raise UserError(f"classic {name}: {key} must be true or false, not {value!r}")
        if type(own[key]) is int and (type(value) is not int or value < 1):
            raise UserError(f"classic {name}: {key} must be a whole number of at least 1, not {value!r}")
        least = 0 if key.endswith("_weight") else 1e-9
        if type(own[key]) is float and (type(value) not in (int, float) or not least <= value < 1000):
            bound = "above 0" if least else "of at least 0"
            raise UserError(f"classic {name}: {key} must be a number {bound}, not {value!r}")
    return NETWORKS[name](outputs, **args)
