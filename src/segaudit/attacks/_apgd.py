"""AutoPGD on maps: a climb in a ball whose step sizes, returns to the best point and end are each image's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from segaudit.attacks._iterate import direction, project
from segaudit.attacks._losses import Loss, Seen, truth
from segaudit.rng import is_random
from segaudit.types import Segmenter

ALPHA = 0.75
"""The share of the gradient step in a move; the rest is the last move made once more."""
RISING = 0.75
"""An image whose loss rose in this share of a window's steps or in fewer has its step halved (the paper's rho)."""


@dataclass
class Rows:
    """Tensors with a row an image: indexing keeps some of the images."""

    def __getitem__(self, rows: Tensor) -> Self:
        """The same of the chosen images (a mask or indices)."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{key: value[rows] if isinstance(value, Tensor) else value for key, value in own.items()})


@dataclass
class Goal(Rows):
    """What is climbed, and the labels that say what is left to win."""

    model: Segmenter
    labels: Tensor
    targeted: bool
    loss: Loss
    weights: Tensor | None
    """N x H x W factors of the loss, or None: all 1."""
    counts: Tensor | None = None
    """N x H x W: how much a pixel is of what is left to win, or None: all 1."""

    def look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One forward pass: the sum to ascend; the cross-entropy with the sign to ascend, N; what is left to win, N.

        Only the graph holds the logits on: memory that outlives the gradient would cost a tenth of the step.
        """
        seen = Seen(self.model(images), self.labels, self.targeted, self._known)
        loss = self.loss(seen)
        total = loss.sum() if self.weights is None else loss.flatten() @ self.weights.to(loss).flatten()
        ce = seen.toward(seen.ce.detach()).flatten(1).sum(1)
        if self.counts is None:
            return total, ce, seen.open.flatten(1).sum(1)
        left = (seen.open * self.counts).flatten(1).sum(1, dtype=torch.float64)
        return total, ce, left.to(ce)  # rounded last, so that what counts the same is the same

    @cached_property
    def _known(self) -> tuple[Tensor, Tensor]:
        return truth(self.labels)


@dataclass
class Ball(Rows):
    """The images within eps of the clean ones and within [0, 1]."""

    clean: Tensor
    low: Tensor
    high: Tensor
    """The sides of the cube in linf, made once; of no use in l2."""
    eps: float
    norm: str

    @classmethod
    def around(cls, clean: Tensor, eps: float, norm: str) -> Self:
        """The ball of radius eps in the norm, `linf` or `l2`."""
        box = ((clean - eps).clamp_(0, 1), (clean + eps).clamp_(0, 1)) if norm == "linf" else (clean, clean)
        return cls(clean, *box, eps, norm)

    def pull(self, images: Tensor) -> Tensor:
        """The nearest images of the ball, in place in linf."""
        if self.norm == "linf":
            return images.clamp_(self.low, self.high)
        return project(images, self.clean, self.eps, self.norm)


@dataclass
class Found(Rows):
    """The best images so far, and what each still has to win, by the count of its goal; -1: no finite gradient."""

    images: Tensor
    left: Tensor

    def put(self, rows: Tensor, other: Found) -> None:
        """Take over the chosen rows of this one from another."""
        self.images[rows], self.left[rows] = other.images, other.left

    @classmethod
    def best_of(cls, runs: Iterable[Callable[[Tensor], Found]], images: Tensor) -> Self:
        """Each image's best of several runs; a run is given the rows (indices) of `images` that are not won yet."""
        best = cls(images.clone(), images.new_full((len(images),), torch.inf))
        for run in runs:
            rows = (best.left > 0).nonzero().flatten()
            if len(rows):
                found = run(rows)
                better = found.left < best.left[rows]
                best.put(rows[better], found[better])
        return best


@dataclass
class State(Rows):
    """Where each image is, where its loss was highest, and what would be returned of it."""

    norm: str
    images: Tensor
    previous: Tensor
    up: Tensor
    """The direction of the gradient, N x C x H x W; NaN or 0 where it is."""
    loss: Tensor
    """The cross-entropy with the sign to ascend, N: what steps are judged by, whichever loss is climbed."""
    step: Tensor
    rises: Tensor
    """Steps of this window in which the loss rose, N."""
    best: Tensor
    best_up: Tensor
    best_loss: Tensor
    checked_loss: Tensor
    """`best_loss` at the last checkpoint, N."""
    halved: Tensor
    """Whether the last checkpoint halved the step, N; true before the first one."""
    kept: Tensor
    kept_left: Tensor
    kept_loss: Tensor
    broken: Tensor
    noisy: bool = False
    """Whether the model draws anew in every pass: then a lucky draw is no win, and the last iterate is what is kept."""

    @classmethod
    def at(cls, start: Tensor, ball: Ball, noisy: bool = False) -> Self:
        """Before the first step from `start`; the first step is of 2 eps."""
        none = start.new_full((len(start),), -torch.inf)
        return cls(
            norm=ball.norm,
            images=start,
            previous=start,
            up=torch.zeros_like(start),
            loss=-none,
            step=start.new_full((len(start), 1, 1, 1), 2 * ball.eps),
            rises=torch.zeros_like(none),
            best=start.clone(),
            best_up=torch.zeros_like(start),
            best_loss=none.clone(),
            checked_loss=none.clone(),
            halved=torch.ones_like(none, dtype=torch.bool),
            kept=start.clone(),
            kept_left=-none,
            kept_loss=none.clone(),
            broken=start.sum((1, 2, 3)).isnan(),
            noisy=noisy,
        )

    def look(self, goal: Goal, *, last: bool = False) -> None:
        """Judge where the images are; unless it is the last look, the same forward pass gives the gradient."""
        images = self.images.detach().requires_grad_(not last)
        with torch.set_grad_enabled(not last):
            total, loss, left = goal.look(images)
        if not last:
            (gradient,) = torch.autograd.grad(total, images)
            self.broken |= ~gradient.sum((1, 2, 3)).isfinite()
            self.up = gradient.sign() if self.norm == "linf" else direction(gradient, self.norm)
        self.broken |= loss.isnan()
        self.rises += loss > self.loss
        self.loss = loss
        self._keep(left, loss)
        if not last:
            higher = loss > self.best_loss
            _put(higher, self.images, self.best)
            _put(higher, self.up, self.best_up)
            self.best_loss = torch.where(higher, loss, self.best_loss)

    def _keep(self, left: Tensor, loss: Tensor) -> None:
        """Least left, then the higher loss; what has none left is final."""
        tie = (left == self.kept_left) & (left > 0) & (loss > self.kept_loss)
        better = (left < self.kept_left) | tie | self.noisy
        _put(better, self.images, self.kept)
        self.kept_left = torch.where(better, left.to(loss), self.kept_left)
        self.kept_loss = torch.where(better, loss, self.kept_loss)

    def check(self, window: int) -> None:
        """Halve the step of the images that got on badly in this window, and take them back to their best point."""
        stale = ~self.halved & (self.best_loss <= self.checked_loss)
        self.halved = stale | (self.rises <= RISING * window)
        self.step = torch.where(self.halved.view(-1, 1, 1, 1), self.step / 2, self.step)
        _put(self.halved, self.best, self.images)
        _put(self.halved, self.best_up, self.up)
        self.checked_loss = self.best_loss
        self.rises.zero_()

    def move(self, ball: Ball, *, first: bool) -> None:
        """A step along the gradient, mixed with the last move; each pulled into the ball."""
        ahead = ball.pull(torch.addcmul(self.images, self.up, self.step))
        if not first:
            onward = self.previous.lerp(self.images, 2)  # the last move, made once more
            ahead = ball.pull(onward.lerp_(ahead, ALPHA))
        self.previous, self.images = self.images, ahead

    def done(self) -> Tensor:
        """The images that no further step can change, N bool."""
        return self.broken | ((self.kept_left == 0) & (not self.noisy))

    def found(self) -> Found:
        """What would be returned now. A gradient that is not finite must be seen: its image is NaN."""
        nan = self.broken.view(-1, 1, 1, 1)
        return Found(self.kept.masked_fill(nan, torch.nan), self.kept_left.masked_fill(self.broken, -1))


def climb(goal: Goal, ball: Ball, start: Tensor, steps: int) -> Found:
    """`steps` steps of AutoPGD from `start`: each image's iterate with the least left to win, by the goal's count.

    start: N x C x H x W in the ball. Costs at most `steps` + 1 forward and `steps` backward passes an image: one that
    has nothing left to win leaves the batch at the next checkpoint.
    Source: Croce and Hein 2020 (APGD), algorithm 1; on maps Croce et al. 2024 (SEA).
    """
    found = Found(torch.empty_like(start), start.new_empty(len(start)))
    state = State.at(start, ball, is_random(goal.model))
    rows = torch.arange(len(start), device=start.device)
    windows = checkpoints(steps)
    for step in range(steps):
        state.look(goal)
        if step in windows:
            done = state.done()
            if done.any():
                found.put(rows[done], state[done].found())
                rows, state, goal, ball = rows[~done], state[~done], goal[~done], ball[~done]
                if not len(rows):
                    return found
            if step:
                state.check(windows[step])
        state.move(ball, first=step == 0)
    state.look(goal, last=True)
    found.put(rows, state.found())
    return found


def checkpoints(steps: int) -> dict[int, int]:
    """The steps before which progress is judged, and how many steps each looks back on: 22 % of all, then ever fewer.

    Before the first step (0) only finished images are looked for.
    """
    window, at = max(int(0.22 * steps), 1), 0
    found = {0: 0}
    while at + window < steps:
        at += window
        found[at] = window
        window = max(window - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    return found


def _put(rows: Tensor, source: Tensor, target: Tensor) -> None:
    """Overwrite these rows of the target, in place, and touch no other; rows: N bool."""
    if rows.is_cpu:
        for row in rows.nonzero().flatten().tolist():
            target[row].copy_(source[row])
    else:  # which rows they are need not leave the device
        torch.where(rows.view(-1, *[1] * (target.ndim - 1)), source, target, out=target)
