"""Image-to-image networks that are trained here and stand before a model: one a file, and a line of the registry."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segaudit import registry
from segaudit.models import weights
from segaudit.registry import TABLES, suggest
from segaudit.types import UserError

SOURCE = "purifier"
"""What a card, or a training spec, gives as the source of such a network: it is no segmenter."""
HANDED = ("channels", "size", "classes")
"""The arguments of a network that the images it is trained on decide, and no spec."""


class Purifier(nn.Module, ABC):
    """Images N x C x H x W -> images of the same shape in [0, 1].

    channels: C. size: (H, W), None where it takes images of any. args: all else that it was built with, for its card.
    A network has keyword arguments alone, and hands all of them to this one. One that draws anew in each pass has a
    true `random`, and takes its numbers from `segaudit.rng.streams_of`.
    """

    def __init__(self, *, channels: int, size: Sequence[int] | None = None, **args: Any) -> None:
        super().__init__()
        self.channels = self.whole("channels", channels, high=64)
        self.size = None if size is None else self.sides(size)
        self.args = args

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Purified images N x C x H x W."""

    def fits(self, images: Tensor) -> None:
        """Refuse images of other channels, or of another size. Raises UserError."""
        if images.shape[1] != self.channels:
            own = f"{self.channels} channel{'s' if self.channels > 1 else ''}"
            raise UserError(f"purifier {name_of(self)!r}: it is made for {own}, and the images have {images.shape[1]}")
        if self.size is not None and self.size != tuple(images.shape[2:]):
            own, theirs = (" x ".join(map(str, size)) for size in (self.size, images.shape[2:]))
            raise UserError(f"purifier {name_of(self)!r}: it is made for images of {own}, not of {theirs}")

    def sides(self, size: Any) -> tuple[int, int]:
        """A size as H and W. Raises UserError for any other thing."""
        if not isinstance(size, (list, tuple)) or len(size) != 2:
            raise UserError(f"purifier {name_of(self)!r}: size must be [height, width] in pixels, not {size!r}")
        return self.whole("size", size[0]), self.whole("size", size[1])

    def whole(self, key: str, value: Any, low: int = 1, high: int = 4096) -> int:
        """An argument that is a whole number from low to high. Raises UserError for any other."""
        if type(value) is not int or not low <= value <= high:
            wanted = f"of at least {low}" if type(value) is not int or value < low else f"of at most {high}"
            raise UserError(f"purifier {name_of(self)!r}: {key} must be a whole number {wanted}, not {value!r}")
        return value

    def real(self, key: str, value: Any, least: float = 0.0, high: float = math.inf) -> float:
        """An argument that is a finite number from least to high. Raises UserError for any other."""
        if type(value) not in (int, float) or not least <= value <= high or value == math.inf:
            wanted = f"of at least {least:g}" if high == math.inf else f"from {least:g} to {high:g}"
            raise UserError(f"purifier {name_of(self)!r}: {key} must be a number {wanted}, not {value!r}")
        return float(value)

    def choice(self, key: str, value: Any, options: Sequence[str]) -> str:
        """An argument that is one of some words. Raises UserError for any other."""
        if value not in options:
            known = f"{' or '.join(options)}, not {value!r}{suggest(str(value), options)}"
            raise UserError(f"purifier {name_of(self)!r}: {key} must be {known}")
        return str(value)


def build(
    name: str, shape: Sequence[int], classes: int, args: Mapping[str, Any], path: str | None = None, seed: int = 0
) -> Purifier:
    """The purifier that a training spec asks for, for images of a shape C x H x W in so many classes.

    path: the weights that it starts from. seed: of those that are not loaded. Raises UserError for another name or
    argument, for weights that do not fit, and for those whose card says that they are of another network.
    """
    make = _network(name)
    registry.check_arguments("purifier", name, args, HANDED)
    known = {"channels": shape[0], "size": list(shape[1:]), "classes": classes}
    own = {key: known[key] for key in HANDED if key in inspect.signature(make).parameters}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: Purifier = make(**own, **args)
    if path is not None:
        tensors, card = weights.read(path)
        if "model" in card and (held := _described(card, path)["name"]) != name:  # they may have the same shapes
            raise UserError(f"purifier {name!r}: {path} holds a {held!r}; give `name: {held}`, or other weights")
        weights.fill(net, tensors, path)
    return net


def name_of(net: Purifier) -> str:
    """What the registry calls a network."""
    place = f"{type(net).__module__}:{type(net).__qualname__}"
    return next((name for name, own in TABLES["purifier"].items() if own == place), type(net).__name__.lower())


def card_of(net: Purifier) -> dict[str, Any]:
    """What the `model` of a card says of it: all that it takes to build it again."""
    size = {} if net.size is None else {"size": list(net.size)}
    return {"source": SOURCE, "name": name_of(net), "args": {"channels": net.channels, **size, **net.args}}


def save_purifier(
    net: Purifier, path: Path, card: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Save it as safetensors, in `dtype`; card: what its model card says besides of how it was trained."""
    weights.write(net, path, {**(card or {}), "model": card_of(net)}, dtype)


def load_purifier(path: str | Path) -> Purifier:
    """The purifier in a weights file (.safetensors), frozen and in eval mode.

    Raises UserError for a file that is missing or damaged, for one of another network, and for one whose card is none.
    """
    tensors, card = weights.read(path)
    model = _described(card, path)
    make, args = _network(model["name"]), model.get("args")
    wanted = list(inspect.signature(make).parameters)
    if not isinstance(args, Mapping) or set(args) != set(wanted):
        raise _strange(path, f"has a card whose args must be {', '.join(wanted)}, not {args!r}")
    try:
        registry.check_arguments("purifier", model["name"], args)
        with torch.device("meta"):  # where it takes no memory: a card may ask for more than there is
            shell: Purifier = make(**args)
    except (UserError, TypeError, ValueError, RuntimeError, MemoryError) as error:  # what a card may drive it to
        raise _strange(path, f"has a card that no network fits ({' '.join(str(error).split())})") from error
    weights.matched(shell, tensors, path)
    net: Purifier = make(**args)
    weights.fill(net, tensors, path)
    return net.eval().requires_grad_(False)


def _network(name: str) -> Any:
    """The class of a registered name; none of a user's own, as a card could name any code there is."""
    known = registry.names("purifier")
    if name not in known:
        raise UserError(f"no purifier is called {name!r}{suggest(name, known)}; there are: {', '.join(known)}")
    return registry.load("purifier", name)


def _described(card: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """The `model` of a card, whose name is a purifier's. Raises UserError for one of another network, or of none."""
    model = card.get("model")
    if not isinstance(model, Mapping) or not model.keys() & {"source", "name"}:
        raise _strange(path, "has no card that says what network it is of")
    if model.get("source") != SOURCE:
        raise _strange(path, f"holds model {model.get('name')!r}")
    known = registry.names("purifier")
    if model.get("name") not in known:
        raise _strange(path, f"holds purifier {model.get('name')!r}, which is none of {', '.join(known)}")
    return model


def _strange(path: str | Path, what: str) -> UserError:
    return UserError(f"purifier: {path} {what}; give weights that `segaudit train` made of a purifier")
