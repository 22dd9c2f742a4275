"""AutoPGD with the losses and the radius reduction of SEA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from segaudit.attacks._apgd import Ball, Found, Goal, climb
from segaudit.attacks._iterate import project, random_start, whole
from segaudit.attacks._losses import class_weights, loss_named
from segaudit.types import Segmenter, Streams, UserError


def apgd(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int = 100,
    loss: str = "masked_ce",
    norm: str = "linf",
    targeted: bool = False,
    radius_reduction: bool = False,
    restarts: int = 1,
    start: bool = True,
    class_pixels: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """AutoPGD: each image adapts its own step size, and returns its iterate with the fewest pixels right.

    loss: `ce`, `masked_ce`, `balanced_masked_ce`, `js` or `margin`. radius_reduction: 30 % of the steps in a ball of
    2 eps, 30 % in one of 1.5 eps, the rest in that of eps, each from the best image of the one before, projected.
    start: begin at a random point of the first ball. class_pixels: K, the pixels of each class in the data, for the
    balanced loss; without it each image's own count. With `targeted` the most pixels on target are kept.
    Source: Croce and Hein 2020 (APGD); losses and radius reduction Croce et al. 2024 (SEA).
    """
    goal = make_goal(model, images, labels, loss=loss, targeted=targeted, class_pixels=class_pixels)
    return search(
        goal,
        images,
        rng,
        eps=eps,
        steps=steps,
        norm=norm,
        radius_reduction=radius_reduction,
        restarts=restarts,
        start=start,
    ).images


def make_goal(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    loss: str,
    targeted: bool = False,
    class_pixels: Tensor | Sequence[float] | None = None,
) -> Goal:
    """What APGD climbs with the loss of that name."""
    weights = None
    if loss == "balanced_masked_ce":
        weights = class_weights(labels, model.num_classes, class_pixels).to(images.dtype)
    return Goal(model, labels, targeted, loss_named(loss), weights)


def search(
    goal: Goal,
    images: Tensor,
    rng: Streams,
    *,
    eps: float,
    steps: int,
    norm: str,
    radius_reduction: bool,
    restarts: int = 1,
    start: bool = True,
) -> Found:
    """The best of `restarts` runs, each through the balls of `slots`; an image that is won takes no further run."""
    whole(steps=steps, restarts=restarts)
    if norm not in ("linf", "l2"):
        raise UserError(f"norm must be linf or l2, not {norm!r}")
    balls = slots(steps, eps, radius_reduction)

    def run(rows: Tensor, restart: int) -> Found:
        clean, own = images[rows], goal[rows]
        streams = rng.child(f"restart{restart}")[rows]
        at = random_start(clean, balls[0][0], norm, streams) if start else clean
        return through(own, clean, at, balls, norm)

    return Found.best_of((partial(run, restart=i) for i in range(restarts)), images)


def through(goal: Goal, clean: Tensor, at: Tensor, balls: Sequence[tuple[float, int]], norm: str) -> Found:
    """Climbs through balls (radius, steps) in turn, each from the best image of the one before, the first from `at`."""
    for radius, count in balls:
        found = climb(goal, Ball.around(clean, radius, norm), project(at, clean, radius, norm), count)
        at = found.images
    return found


def slots(steps: int, eps: float, radius_reduction: bool) -> list[tuple[float, int]]:
    """(radius, steps) of each ball in turn: 30 %, 30 % and 40 % of the steps at 2, 1.5 and 1 eps, or all at eps."""
    part = int(0.3 * steps) if radius_reduction else 0
    return [slot for slot in ((2 * eps, part), (1.5 * eps, part), (eps, steps - 2 * part)) if slot[1]]
