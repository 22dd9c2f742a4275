"""Image scaling attacks on a data set: the next picture hidden in each one, seen with and without the resizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from segaudit import registry
from segaudit.attacks._resize import Size
from segaudit.attacks.image_scaling import Resizer, resizers
from segaudit.audit import build
from segaudit.audit.cells.hiding import SAFE, Picture, craft, guarded, guess, large, measured, paired, picture_of, score
from segaudit.audit.parts import Tuned
from segaudit.audit.resizing import BLENDED, NONE, Scaling, adaptive, evades
from segaudit.audit.spec import RunSpec
from segaudit.data.base import Dataset
from segaudit.metrics import confusion
from segaudit.metrics.scaling import SEEN, SIZES, Scaled, scaled
from segaudit.nn.precision import default_device, exact_on_cuda, prepare_process
from segaudit.types import Counts, Floats, Hidden, Segmenter

Tell = Callable[[int, int], object]
Try = tuple[Tuned, str]
"""A guard, and what the attack knows of it."""
PLAIN: Sequence[Try] = ((NONE, "white-box"),)
"""No guard."""


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
    batch, tallies = data.batch(data.ids), [_Tally(detectors) for _ in tries]
    evaded = {evades(detector): detector for detector in detectors}
    for i, image_id in enumerate(data.ids):
        own, other = batch.labels[i : i + 1], batch.labels[i - len(batch) + 1 :][:1]
        target = picture_of(batch.images[i - len(batch) + 1])
        size = target.shape[0], target.shape[1]
        source = large(data, image_id, size, factor)
        unharmed = [score(detector, source, resizer, size) for detector in detectors]
        known = {name: (guess(m, SAFE(source, size)), guess(m, target / 255)) for name, m in models.items()}
        made: dict[str, tuple[Picture, list[float]]] = {}
        for (guard, threat), tally in zip(tries, tallies, strict=True):
            behind = partial(guarded, guard, resizer, image_id, seed)
            maker = threat if threat in evaded else guard.label() if threat == "adaptive" else ""
            if maker not in made:
                if threat in evaded:
                    picture = _evading(source, target, resizer, evaded[threat], size, eps)
                elif maker:
                    picture = craft(source, target, behind("attack"), adaptive(guard), eps)
                else:
                    picture = craft(source, target, resizer, attack, eps)
                made[maker] = picture, [score(detector, picture, resizer, size) for detector in detectors]
            picture, noticed = made[maker]
            one = measured(source, target, picture, behind())
            tally.add([getattr(one, key) for key in SIZES], unharmed, noticed)
            before, safely = behind()(source, size), SAFE(picture, size)
            for name, model in models.items():
                clean, goal = known[name]
                got = guess(model, one.small)
                shown = (clean, guess(model, safely), guess(model, before), got, goal, got)
                for what, classes, labels in zip(SEEN, shown, (own, own, own, own, other, other), strict=True):
                    tally.counts[what, name].append(confusion.count(classes, labels, model.num_classes))
            step()
    of = {"library": resizer.library, "method": resizer.method, "ids": tuple(data.ids)}
    return [
        row
        for (guard, threat), tally in zip(tries, tallies, strict=True)
        for row in tally.rows(models, of | {"guard": guard.label(), "threat": threat})
    ]


class _Tally:
    """What one guard and what is known of it came to, picture by picture."""

    def __init__(self, detectors: Sequence[Tuned]) -> None:
        self.detectors = detectors
        self.counts: defaultdict[tuple[str, str], list[Counts]] = defaultdict(list)
        self.sizes: list[list[float]] = []
        self.before: list[list[float]] = []
        self.after: list[list[float]] = []

    def add(self, sizes: list[float], before: list[float], after: list[float]) -> None:
        """A picture: its sizes, in the order of `SIZES`, and what each detector makes of it before and after."""
        self.sizes.append(sizes)
        self.before.append(before)
        self.after.append(after)

    def rows(self, models: Mapping[str, Segmenter], of: Mapping[str, Any]) -> Iterator[Hidden]:
        """All pictures as each model saw them; of: the words of the rows, and their ids."""
        made: dict[str, Any] = dict(zip(SIZES, _columns(self.sizes), strict=True)) | dict(of)
        pairs = zip(_columns(self.before), _columns(self.after), strict=True)
        made["scores"] = {detector.label(): pair for detector, pair in zip(self.detectors, pairs, strict=True)}
        for name in models:
            seen = {what: confusion.join(self.counts[what, name]) for what in SEEN}
            yield Hidden(**(made | {"model": name} | seen))


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


def _columns(rows: Sequence[Sequence[float]]) -> list[Floats]:
    return [np.array(column) for column in zip(*rows, strict=True)]


def _evading(source: Picture, target: Picture, resizer: Resizer, detector: Tuned, size: Size, eps: float) -> Picture:
    """The picture of the attack that knows of a detector."""
    noticed = partial(score, detector, resizer=resizer, size=size)
    made: Picture = registry.load("scaling", BLENDED)(source, target, resizer, noticed=noticed, eps=eps)
    return made
