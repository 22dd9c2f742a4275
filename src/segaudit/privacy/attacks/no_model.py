"""The check of the split: who is a member, told from image and mask alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from segaudit.privacy.attacks import _check as check
from segaudit.privacy.attacks._evidence import Bools, scikit_learn, seed_of
from segaudit.privacy.experiment import Experiment, Scored
from segaudit.types import VOID, Floats, Ints, UserError

NAME = "no_model"
THUMBNAIL = 4
"""The side of the small picture of an image."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def no_model(
    experiment: Experiment,
    *,
    members: Collection[str],
    rng: Generator,
    folds: int = 5,
    repeats: int = 2,
    trees: int = 100,
) -> Scored:
    """No model: members told from others by image and mask alone; above 0.5 it is the split that leaks.

    It sees no network, and is told who is a member: a forest learns colours, edges, a small picture and the classes of
    all units but one fold's, and is tried on those; a unit is never on both sides. repeats: new folds, averaged.
    folds: at most as many as there are units of members or of others. The score is the mean vote, the threshold 0.5.
    Raises UserError for other numbers, fewer than two units on a side, and without scikit-learn.
    Source: Das et al. 2024 and Meeus et al. 2024 (blind baselines); Geurts et al. 2006 (the forest).
    """
    _checked(folds=folds, repeats=repeats, trees=trees)
    scikit_learn(NAME)
    from sklearn.ensemble import ExtraTreesClassifier

    ids = experiment.candidates
    member = np.array([name in members for name in ids])
    units = [experiment.units[name] for name in ids]
    dealt = [_folds(units, member, folds, rng) for _ in range(repeats)]
    features = np.stack([features_of(*experiment.samples.sample(name), experiment.num_classes) for name in ids])
    scores = np.zeros(len(ids))
    for fold in dealt:
        for held in range(fold.max() + 1):
            forest = ExtraTreesClassifier(
                trees, min_samples_leaf=2, class_weight="balanced", random_state=seed_of(rng), n_jobs=1
            )
            forest.fit(features[fold != held], member[fold != held])
            scores[fold == held] += forest.predict_proba(features[fold == held])[:, 1] / repeats
    return Scored(scores, 0.5)


def _checked(*, folds: Any = 5, repeats: Any = 2, trees: Any = 100, **_: Any) -> None:
    for key, value, least in (("folds", folds, 2), ("repeats", repeats, 1), ("trees", trees, 1)):
        check.whole(NAME, key, value, least)


no_model.baseline = True  # type: ignore[attr-defined]  # it sees no network, and is handed `members`
no_model.check = _checked  # type: ignore[attr-defined]  # of what a spec says, before anything is trained


def features_of(image: Tensor, labels: Tensor, classes: int) -> Floats:
    """What an image C x H x W and its mask look like, in a few numbers: as many for every size."""
    flat = image.double().flatten(1)
    spread = flat.std(1, unbiased=False)
    ranks = torch.quantile(flat, torch.tensor(QUANTILES, dtype=flat.dtype), dim=1).flatten()
    down, along = (image.double().diff(dim=axis).abs().flatten(1) for axis in (1, 2))
    edges = [side.sum(1) / max(1, side.shape[1]) for side in (down, along)]
    rough = [side.square().sum(1) / max(1, side.shape[1]) for side in (down, along)]
    small = F.adaptive_avg_pool2d(image.double(), THUMBNAIL).flatten()
    own = F.one_hot(labels.where(labels != VOID, classes), classes + 1).movedim(2, 0)[:classes].double()
    pixels = own.sum((1, 2))
    shares = pixels / pixels.sum().clamp_min(1)
    height, width = labels.shape
    rows, columns = torch.arange(height).double() / height, torch.arange(width).double() / width
    places = [(own.sum(2) * rows).sum(1), (own.sum(1) * columns).sum(1)]
    centres = [torch.where(pixels > 0, at / pixels.clamp_min(1), -1.0) for at in places]
    bounds = torch.stack([(labels.diff(dim=axis) != 0).double().sum() for axis in (0, 1)]) / labels.numel()
    size = torch.tensor(image.shape[1:]).double()
    parts = [flat.mean(1), spread, ranks, *edges, *rough, small, shares, *centres, bounds, size]
    return np.asarray(torch.cat(parts).numpy(), np.float64)


def _folds(units: Sequence[str], member: Bools, folds: int, rng: Generator) -> Ints:
    """The fold of each image, N: whole units, those of members and those of others dealt out evenly.

    Raises UserError where a side has fewer than two units: then there is nothing to learn it from.
    """
    sides = dict(zip(units, member.tolist(), strict=True))
    inside, outside = ([unit for unit, own in sides.items() if own == side] for side in (True, False))
    count = min(folds, len(inside), len(outside))
    if count < 2:
        raise UserError(
            f"membership attack {NAME!r} needs two units of members and two of others, to learn from some and try the "
            f"rest, and there are {len(inside)} and {len(outside)}: cut the groups (`clip`), or set `unit: image`"
        )
    fold: dict[str, int] = {}
    for own in (inside, outside):
        for place, row in enumerate(torch.randperm(len(own), generator=rng).tolist()):
            fold[own[row]] = place % count
    return np.array([fold[unit] for unit in units], np.int64)
