"""Image scaling attacks on a data set: the next picture hidden in each one, seen with and without the resizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segaudit import registry
from segaudit.attacks.image_scaling import Resizer, resizers
from segaudit.audit import build, parts
from segaudit.audit.spec import RunSpec
from segaudit.data.base import Dataset
from segaudit.metrics import confusion
from segaudit.metrics.perturbation import norms
from segaudit.metrics.similarity import ssim
from segaudit.nn.precision import default_device, exact_on_cuda, prepare_process
from segaudit.types import Counts, Segmenter, UserError

Picture = NDArray[np.uint8]
Tell = Callable[[int, int], object]

SAFE = Resizer("pil", "area")
"""Weighs every pixel alike, so it shows a picture as it looks at full size."""


@dataclass(frozen=True, slots=True)
class Attacked:
    """One attacked picture. Norms are of images in [0, 1].

    picture: H x W x C. small: h x w x C in [0, 1], what the attacked resizer makes of it. linf, l2: how far that is
    from the target. change: L2 of the perturbation at full size. similarity: SSIM with the source at full size.
    changed: the share of the places whose pixel is another.
    """

    picture: Picture
    small: NDArray[np.float64]
    linf: float
    l2: float
    change: float
    similarity: float
    changed: float


@dataclass(frozen=True, slots=True)
class Scaled:
    """What attacks on one resizer did to one model over a data set; mIoUs in [0, 1].

    clean, source: the pictures before and after the attack, resized safely, against their own labels.
    goal, target: the hidden pictures themselves, and what the attacked resizer makes of the attacked ones, against the
    hidden pictures' labels. linf, l2: the largest distance from the target at small size. change, similarity,
    changed: means over the images, as in `Attacked`.
    """

    model: str
    library: str
    method: str
    images: int
    clean: float
    source: float
    goal: float
    target: float
    linf: float
    l2: float
    change: float
    similarity: float
    changed: float


def attack_pair(
    source: Picture, target: Picture, resizer: Resizer, *, attack: str = "image_scaling", eps: float = 2 / 255
) -> Attacked:
    """Hide `target` (h x w x C) in `source` (H x W x C), and measure it with the library's own resize of 8 bits."""
    picture = registry.load("scaling", attack)(source, target, resizer, eps=eps)
    small = resizer(picture, target.shape[:2])
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


def scale_attack(
    data: Dataset,
    models: Mapping[str, Segmenter],
    attacked: Sequence[Resizer],
    *,
    factor: float | None = None,
    attack: str = "image_scaling",
    eps: float = 2 / 255,
    tell: Tell = lambda done, total: None,
) -> list[Scaled]:
    """Hide in each picture of the data set the next one (in the last the first): a row for each resizer and model.

    The pictures are attacked at their own size, or with `factor` at that many times the size that the models see,
    which is the data set's `size`. Raises UserError where they are not the larger ones, or of several sizes.
    """
    if len(data.ids) < 2:
        raise UserError(f"data: {data.ids[0]} is alone; each picture is to hide the next one, so use two or more")
    batch = data.batch(data.ids)
    counts: defaultdict[tuple[str, str, Resizer], list[Counts]] = defaultdict(list)
    sizes: defaultdict[Resizer, list[tuple[float, ...]]] = defaultdict(list)
    for i, image_id in enumerate(data.ids):
        own, other = batch.labels[i], batch.labels[i - len(batch) + 1]
        target = _picture(batch.images[i - len(batch) + 1])
        source = _large(data, image_id, target.shape[:2], factor)
        safely = SAFE(source, target.shape[:2])
        for name, model in models.items():
            counts["clean", name, SAFE].append(_count(model, safely, own))
            counts["goal", name, SAFE].append(_count(model, target / 255, other))
        for j, resizer in enumerate(attacked):
            made = attack_pair(source, target, resizer, attack=attack, eps=eps)
            sizes[resizer].append((made.linf, made.l2, made.change, made.similarity, made.changed))
            safely = SAFE(made.picture, target.shape[:2])
            for name, model in models.items():
                counts["source", name, resizer].append(_count(model, safely, own))
                counts["target", name, resizer].append(_count(model, made.small, other))
            tell(i * len(attacked) + j + 1, len(batch) * len(attacked))

    def miou(what: str, name: str, resizer: Resizer = SAFE) -> float:
        return confusion.miou(confusion.join(counts[what, name, resizer]))

    rows = []
    for resizer in attacked:
        linf, l2, *means = (np.array(column) for column in zip(*sizes[resizer], strict=True))
        change, similarity, changed = (float(column.mean()) for column in means)
        rows += [
            Scaled(
                model=name,
                library=resizer.library,
                method=resizer.method,
                images=len(batch),
                clean=miou("clean", name),
                source=miou("source", name, resizer),
                goal=miou("goal", name),
                target=miou("target", name, resizer),
                linf=float(linf.max()),
                l2=float(l2.max()),
                change=change,
                similarity=similarity,
                changed=changed,
            )
            for name in models
        ]
    return rows


def scale_spec(
    spec: RunSpec, library: str, method: str | None, factor: float | None, eps: str, tell: Tell
) -> list[Scaled]:
    """`scale_attack` with the data and models of a run, on one method of a library or on all that it has."""
    prepare_process()
    exact_on_cuda()
    try:
        near = parts.real(eps)
    except ValueError as error:
        raise UserError(f"eps: {error}") from None
    attacked = resizers(library) if method is None else [Resizer(library, method)]
    data = build.dataset(spec.data)
    models = {m.title(): build.model(m, data.class_names).to(default_device()) for m in spec.models}
    return scale_attack(data, models, attacked, factor=factor, eps=near, tell=tell)


def table(rows: Sequence[Scaled]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as a page prints them: mIoUs and shares in %, Linf in 1/255."""
    header = [
        "model",
        "library",
        "method",
        "clean",
        "full size",
        "hidden",
        "resized",
        "Linf",
        "L2",
        "SSIM",
        "changed %",
    ]
    return header, [
        [row.model, row.library, row.method]
        + [f"{100 * value:.2f}" for value in (row.clean, row.source, row.goal, row.target)]
        + [f"{255 * row.linf:.2f}", f"{row.change:.2f}", f"{row.similarity:.3f}", f"{100 * row.changed:.1f}"]
        for row in rows
    ]


def _large(data: Dataset, image_id: str, small: tuple[int, ...], factor: float | None) -> Picture:
    """The picture that is attacked, at its own size or at `factor` times that of the small ones."""
    picture = data.read(image_id)[0]
    if factor is not None:
        if not 1 < factor <= 64:
            raise UserError(f"factor must be a number above 1 and at most 64, not {factor!r}")
        picture = Resizer("pil", "bicubic").raw(picture, (round(small[0] * factor), round(small[1] * factor)))
    if picture.shape[0] < small[0] or picture.shape[1] < small[1] or picture.shape[:2] == small[:2]:
        sizes = " x ".join(str(side) for side in picture.shape[:2]), " x ".join(str(side) for side in small[:2])
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
def _count(model: Segmenter, small: NDArray[np.float64], labels: Tensor) -> Counts:
    """The pixel counts of a model on one picture h x w x C in [0, 1]."""
    prediction = model(_tensor(small).to(default_device())).argmax(1).cpu()
    return confusion.count(prediction, labels[None], model.num_classes)
