"""Image scaling attacks on a data set: the next picture hidden in each one, seen with and without the resizer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segaudit import registry
from segaudit.attacks._resize import Resize, Size
from segaudit.attacks.image_scaling import Resizer, resizers
from segaudit.audit import build
from segaudit.audit.parts import Tuned
from segaudit.audit.resizing import BLENDED, NONE, Scaling, adaptive, evades
from segaudit.audit.spec import RunSpec
from segaudit.data.base import Dataset
from segaudit.metrics import confusion
from segaudit.metrics.perturbation import norms
from segaudit.metrics.scaling import Scaled, scaled
from segaudit.metrics.similarity import ssim
from segaudit.nn.precision import default_device, exact_on_cuda, prepare_process
from segaudit.rng import ImageStreams
from segaudit.types import Counts, Floats, Hidden, Segmenter, UserError

Picture = NDArray[np.uint8]
Tell = Callable[[int, int], object]
Try = tuple[Tuned, str]
"""A guard, and what the attack knows of it."""
PLAIN: Sequence[Try] = ((NONE, "white-box"),)
"""No guard."""

SEEN = ("clean", "source", "before", "after", "goal", "target")
"""The counts of `Hidden`, in its order."""
SIZES = ("linf", "l2", "change", "similarity", "changed")
"""What is measured of one attacked picture, in the order of `Hidden`."""

SAFE = Resizer("pil", "area")
"""Weighs every pixel alike, so it shows a picture as it looks at full size."""


@dataclass(frozen=True, slots=True)
class Attacked:
    """One attacked picture. Norms are of images in [0, 1].

    picture: H x W x C. small: h x w x C in [0, 1], what the network gets of it. linf, l2: how far that is from the
    target. change: L2 of the perturbation at full size. similarity: SSIM with the source at full size. changed: the
    share of the places whose pixel is another.
    """

    picture: Picture
    small: NDArray[np.float64]
    linf: float
    l2: float
    change: float
    similarity: float
    changed: float


def attack_pair(
    source: Picture, target: Picture, resizer: Resize, *, attack: str = "image_scaling", eps: float = 2 / 255
) -> Attacked:
    """Hide `target` (h x w x C) in `source` (H x W x C), and measure it with the library's own resize of 8 bits."""
    return measured(source, target, craft(source, target, resizer, attack, eps), resizer)


def craft(source: Picture, target: Picture, resizer: Resize, attack: str, eps: float) -> Picture:
    """The picture of a scaling attack by name."""
    own = {"eps": eps} if registry.accepts("scaling", attack, "eps") else {}
    made: Picture = registry.load("scaling", attack)(source, target, resizer, **own)
    return made


def measured(source: Picture, target: Picture, picture: Picture, seen: Resize) -> Attacked:
    """How a picture with `target` hidden in `source` comes out; seen: all that stands before the network."""
    small = seen(picture, (target.shape[0], target.shape[1]))
    wanted, before, after = _tensor(target / 255), _tensor(source / 255), _tensor(picture / 255)
    near, change = norms(_tensor(small), wanted), norms(after, before)
    return Attacked(
        picture=picture,
        small=small,
        linf=float(near.linf[0]),
        l2=float(near.l2[0]),
        change=float(change.l2[0]),
        similarity=float(ssim(after, before)[0]),
        changed=float(change.l0[0]) / before[0, 0].numel(),
    )


def hide(
    data: Dataset,
    models: Mapping[str, Segmenter],
    resizer: Resizer,
    tries: Sequence[Try] = PLAIN,
    detectors: Sequence[Tuned] = (),
    *,
    factor: float | None = None,
    attack: str = "image_scaling",
    eps: float = 2 / 255,
    seed: int = 0,
    step: Callable[[], object] = lambda: None,
) -> list[Hidden]:
    """Hide in each picture of the data set the next one (in the last the first): rows for each try and model.

    The pictures are attacked at their own size, or with `factor` at that many times the size that the models see,
    which is the data set's `size`. A guard that draws has a stream for each picture, the same before and after the
    attack. step: told of each picture and try. Raises UserError where pictures are not the larger ones.
    """
    paired(data)
    batch = data.batch(data.ids)
    counts: defaultdict[tuple[str, int, str], list[Counts]] = defaultdict(list)
    sizes: defaultdict[int, list[tuple[float, ...]]] = defaultdict(list)
    scores: defaultdict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    for i, image_id in enumerate(data.ids):
        own, other = batch.labels[i : i + 1], batch.labels[i - len(batch) + 1 :][:1]
        target = _picture(batch.images[i - len(batch) + 1])
        size = target.shape[0], target.shape[1]
        source = large(data, image_id, size, factor)
        unharmed = [score(detector, source, resizer, size) for detector in detectors]
        known = {name: (_guess(m, SAFE(source, size)), _guess(m, target / 255)) for name, m in models.items()}
        made: dict[str, tuple[Picture, list[float]]] = {}
        evaded = {evades(detector): detector for detector in detectors}
        for number, (guard, threat) in enumerate(tries):
            maker = threat if threat in evaded else guard.label() if threat == "adaptive" else ""
            if maker not in made:
                if threat in evaded:
                    noticed_by = partial(score, evaded[threat], resizer=resizer, size=size)
                    picture = registry.load("scaling", BLENDED)(source, target, resizer, noticed=noticed_by, eps=eps)
                else:
                    through: Resize = guarded(guard, resizer, image_id, seed, "attack") if maker else resizer
                    picture = craft(source, target, through, adaptive(guard) if maker else attack, eps)
                made[maker] = picture, [score(detector, picture, resizer, size) for detector in detectors]
            picture, noticed = made[maker]
            one = measured(source, target, picture, guarded(guard, resizer, image_id, seed))
            sizes[number].append((one.linf, one.l2, one.change, one.similarity, one.changed))
            for detector, pair in zip(detectors, zip(unharmed, noticed, strict=True), strict=True):
                scores[number, detector.label()].append(pair)
            before, safely = guarded(guard, resizer, image_id, seed)(source, size), SAFE(picture, size)
            for name, model in models.items():
                clean, goal = known[name]
                got = _guess(model, one.small)
                for what, guess, labels in (
                    ("clean", clean, own),
                    ("source", _guess(model, safely), own),
                    ("before", _guess(model, before), own),
                    ("after", got, own),
                    ("goal", goal, other),
                    ("target", got, other),
                ):
                    counts[what, number, name].append(confusion.count(guess, labels, model.num_classes))
            step()
    rows = list[Hidden]()
    for number, (guard, threat) in enumerate(tries):
        found = {label: _pair(pairs) for (k, label), pairs in scores.items() if k == number}
        of: dict[str, Any] = {"library": resizer.library, "method": resizer.method}
        of |= {"guard": guard.label(), "threat": threat, "ids": tuple(data.ids), "scores": found}
        of |= zip(SIZES, map(np.array, zip(*sizes[number], strict=True)), strict=True)
        for name in models:
            own_counts = {what: confusion.join(counts[what, number, name]) for what in SEEN}
            rows.append(Hidden(**(of | {"model": name} | own_counts)))
    return rows


def scale_attack(
    data: Dataset,
    models: Mapping[str, Segmenter],
    attacked: Sequence[Resizer],
    *,
    tries: Sequence[Try] = PLAIN,
    tell: Tell = lambda done, total: None,
    **own: Any,
) -> list[Scaled]:
    """`hide` on several resizers, summed up: a row for each resizer, try and model. own: what else `hide` takes."""
    done, total, rows = 0, len(attacked) * len(data.ids) * len(tries), list[Scaled]()

    def step() -> None:
        nonlocal done
        done += 1
        tell(done, total)

    for resizer in attacked:
        rows += [scaled(hidden) for hidden in hide(data, models, resizer, tries, step=step, **own)]
    return rows


def scale_spec(spec: RunSpec, asked: Scaling, tell: Tell) -> list[Scaled]:
    """`scale_attack` with the data and models of a run."""
    prepare_process()
    exact_on_cuda()
    attacked = chosen(asked)
    data = build.dataset(spec.data)
    models = {m.title(): build.model(m, data.class_names).to(default_device()) for m in spec.models}
    return scale_attack(
        data,
        models,
        attacked,
        tries=asked.tries(),
        detectors=asked.detectors,
        factor=asked.factor,
        eps=asked.eps,
        seed=spec.seed,
        tell=tell,
    )


def chosen(asked: Scaling) -> list[Resizer]:
    """The resizers that are attacked. Raises UserError for one that there is not."""
    methods = asked.methods
    return resizers(asked.library) if methods is None else [Resizer(asked.library, method) for method in methods]


def guarded(guard: Tuned, resizer: Resizer, image_id: str, seed: int, whose: str = "guard") -> Resize:
    """The resizer behind a guard, for one picture: what it draws, if it does, comes from the start of its stream.

    whose: streams of other names are others, so that an attack cannot know what will be drawn.
    """
    own = dict(guard.args)
    if registry.accepts("guard", guard.name, "rng"):
        purpose = f"scaling/{whose}/{resizer.library}/{resizer.method}/{guard.label()}"
        own["rng"] = ImageStreams(seed, [image_id], purpose)
    made: Resize = registry.load("guard", guard.name)(resizer, **own)
    return made


def paired(data: Dataset) -> None:
    """Refuse a data set of a single picture."""
    if len(data.ids) < 2:
        raise UserError(f"data: {data.ids[0]} is alone; each picture is to hide the next one, so use two or more")


def large(data: Dataset, image_id: str, small: Size, factor: float | None) -> Picture:
    """The picture that is attacked, at its own size or at `factor` times that of the small ones.

    Raises UserError for a factor that cannot be, and where the picture is not larger than the small ones.
    """
    picture = np.array(data.read(image_id)[0])  # a copy: what a library reads from a file may be sealed
    if factor is not None:
        if not 1 < factor <= 64:
            raise UserError(f"factor must be a number above 1 and at most 64, not {factor!r}")
        picture = Resizer("pil", "bicubic").raw(picture, (round(small[0] * factor), round(small[1] * factor)))
    if picture.shape[0] < small[0] or picture.shape[1] < small[1] or picture.shape[:2] == small:
        sizes = " x ".join(str(side) for side in picture.shape[:2]), " x ".join(str(side) for side in small)
        raise UserError(
            f"{data.where(image_id)}: the picture ({sizes[0]}) is not larger than what a model sees ({sizes[1]}): give "
            "data a smaller `size`, or the attack a factor of 4"
        )
    return picture


def _picture(image: Tensor) -> Picture:
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def _tensor(picture: NDArray[np.float64]) -> Tensor:
    """H x W x C in [0, 1] -> 1 x C x H x W float32."""
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())[None].float()


@torch.no_grad()
def _guess(model: Segmenter, small: NDArray[np.float64]) -> Tensor:
    """The classes 1 x H x W that a model sees in a picture h x w x C in [0, 1]."""
    logits: Tensor = model(_tensor(small).to(default_device()))
    return logits.argmax(1).cpu()


def score(detector: Tuned, picture: Picture, resizer: Resizer, size: Size) -> float:
    """What a detector makes of a picture. Raises UserError where that is no number."""
    found = float(registry.load("scaling_detector", detector.name)([picture], resizer, size, **detector.args)[0])
    if math.isnan(found):
        raise UserError(f"scaling_detector {detector.label()!r} scores a picture nan; let it be a number")
    return found


def _pair(scores: Sequence[tuple[float, float]]) -> tuple[Floats, Floats]:
    before, after = (np.array(column) for column in zip(*scores, strict=True))
    return before, after
