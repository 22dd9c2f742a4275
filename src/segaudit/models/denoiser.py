"""A small image-to-image network that is trained here: a denoiser, or with a bottleneck an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.models import weights
from segaudit.registry import suggest
from segaudit.types import UserError

SOURCE = "denoiser"
"""What a card, or a training spec, gives as the source of such a network: it is no segmenter."""
NAMES = ("residual", "bottleneck")
"""The two forms, as a training spec names them."""
STRIDE = 8


class Denoiser(nn.Module):
    """Images N x C x H x W, in [0, 1] or with noise beyond it -> images of the same shape in [0, 1]; any H and W.

    Convolutions at a half, a quarter and an eighth of the size, down and up again, with skips; what they give is taken
    from the input. channels: C. width: channels at half size, twice as many below; with fewer than 4 C, which is what
    four pixels hold, some of the noise always stays. depth: residual blocks at each size, both ways. bottleneck: no
    skip, and nothing is taken from the input: the picture is made anew from 2 x width numbers for 8 x 8 pixels.
    Without batch norms, so that no image depends on another. In train mode the output is not clipped: a clipped pixel
    would teach nothing. Raises UserError for other arguments, and for images of other channels.
    Source: ours, after DnCNN (Zhang et al. 2017: the noise is learnt), FFDNet (Zhang et al. 2018: folded pixels) and
    DRUNet (Zhang et al. 2021).
    """

    def __init__(self, channels: int = 3, width: int = 24, depth: int = 1, bottleneck: bool = False) -> None:
        super().__init__()
        for key, value in (("channels", channels), ("width", width), ("depth", depth)):
            if type(value) is not int or value < 1:
                raise UserError(f"denoiser: {key} must be a whole number of at least 1, not {value!r}")
        self.channels, self.width, self.depth, self.bottleneck = channels, width, depth, bottleneck
        low = 2 * width
        self.stem = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.begin = _blocks(width, depth)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, low, 2, stride=2), _blocks(low, depth)) for inputs in (width, low)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(low, outputs, 2, stride=2) for outputs in (low, width))
        self.end = nn.ModuleList(_blocks(outputs, depth) for outputs in (low, width))
        self.head = nn.Conv2d(width, 4 * channels, 3, padding=1)
        if not bottleneck:  # the first step starts from the picture as it is
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Clean images N x C x H x W of noisy ones."""
        if images.shape[1] != self.channels:
            raise UserError(f"denoiser: it is made for {self.channels} channels, and the images have {images.shape[1]}")
        height, width = images.shape[2:]
        bottom, right = -height % STRIDE, -width % STRIDE
        padded = F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images
        x = self.begin(self.stem(F.pixel_unshuffle(padded, 2)))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, end in zip(self.up, self.end, strict=True):
            skip = skips.pop()
            x = end(up(x) if self.bottleneck else up(x) + skip)
        found = F.pixel_shuffle(self.head(x), 2)[:, :, :height, :width].to(images.dtype)
        made = found if self.bottleneck else images - found
        return made if self.training else made.clamp(0, 1)


def build(name: str, channels: int, args: Mapping[str, Any], path: str | None = None, seed: int = 0) -> Denoiser:
    """The denoiser that a training spec asks for: `residual` or `bottleneck`; args: width, depth.

    path: the weights that it starts from. seed: of those that are not loaded. Raises UserError for another name or
    argument, for weights that do not fit, and for those whose card says that they are of the other form.
    """
    if name not in NAMES:
        raise UserError(f"denoiser has no network {name!r}{suggest(name, NAMES)}; it has: {', '.join(NAMES)}")
    for key in args:
        if key not in ("width", "depth"):
            near = suggest(key, ("width", "depth"))
            raise UserError(f"denoiser {name!r} has no argument {key!r}{near}; its arguments: width, depth")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Denoiser(channels, bottleneck=name == "bottleneck", **args)
    if path is not None:
        tensors, card = weights.read(path)
        if "model" in card and (own := _described(card, path)["name"]) != name:  # both forms have the same shapes
            raise UserError(f"denoiser {name!r}: {path} holds a {own!r}; give `name: {own}`, or other weights")
        weights.fill(net, tensors, path)
    return net


def card_of(net: Denoiser) -> dict[str, Any]:
    """What the `model` of a card says of it: all that it takes to build it again."""
    args = {"channels": net.channels, "width": net.width, "depth": net.depth}
    return {"source": SOURCE, "name": NAMES[net.bottleneck], "args": args}


def save_denoiser(
    net: Denoiser, path: Path, card: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Save it as safetensors, in `dtype`; card: what its model card says besides of how it was trained."""
    weights.write(net, path, {**(card or {}), "model": card_of(net)}, dtype)


def load_denoiser(path: str | Path) -> Denoiser:
    """The denoiser in a weights file (.safetensors), frozen and in eval mode.

    Raises UserError for a file that is missing or damaged, for one of another network, and for one whose card is none.
    """
    tensors, card = weights.read(path)
    model = _described(card, path)
    args = model.get("args")
    if not isinstance(args, Mapping) or set(args) != {"channels", "width", "depth"}:
        raise _strange(path, f"has a card whose args must be channels, width and depth, not {args!r}")
    try:
        net = Denoiser(**args, bottleneck=model["name"] == "bottleneck")
    except UserError as error:
        raise _strange(path, f"has a card that no network fits ({error})") from error
    weights.fill(net, tensors, path)
    return net.eval().requires_grad_(False)


def _described(card: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """The `model` of a card, whose name is one of `NAMES`. Raises UserError for one of another network, or of none."""
    model = card.get("model")
    if not isinstance(model, Mapping) or not model.keys() & {"source", "name"}:
        raise _strange(path, "has no card that says what network it is of")
    if model.get("source") != SOURCE:
        raise _strange(path, f"holds model {model.get('name')!r}")
    if model.get("name") not in NAMES:
        raise _strange(path, f"holds denoiser {model.get('name')!r}, which is none of {', '.join(NAMES)}")
    return model


def _strange(path: str | Path, what: str) -> UserError:
    return UserError(f"denoiser: {path} {what}; give weights that `segaudit train` made with recipe denoise")


def _blocks(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(_Residual(width) for _ in range(depth)))


class _Residual(nn.Module):
    """Two convolutions around which the input goes as well."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + self.second(F.relu(self.first(x)))  # type: ignore[no-any-return]
