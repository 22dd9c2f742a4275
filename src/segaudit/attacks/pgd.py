"""Projected gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.attacks._iterate import cross_entropy, iterate, random_start, whole
from segaudit.types import VOID, Segmenter, Streams


def pgd(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    norm: str = "linf",
    targeted: bool = False,
    start: bool = True,
) -> Tensor:
    """PGD: random start, then steps along the gradient of the cross-entropy, each projected into the eps ball.

    step_size: 2.5 eps / steps unless given. start: begin at a random point of the ball. Of several restarts each
    image keeps the one whose last iterate has the fewest pixels right (targeted: the most pixels on target).
    Source: Madry et al. 2018.
    """
    whole(steps=steps, restarts=restarts)
    goal = cross_entropy(model, labels, sign=-1.0 if targeted else 1.0)
    step_size = 2.5 * eps / steps if step_size is None else step_size
    best, kept = images, torch.full((len(images),), float("inf"), device=images.device)
    for restart in range(restarts):
        begin = random_start(images, eps, norm, rng.child(f"restart{restart}")) if start else images
        found = iterate(goal, begin, images, eps=eps, step_size=step_size, steps=steps, norm=norm)
        if restarts == 1:
            return found
        with torch.no_grad():
            right = ((model(found).argmax(1) == labels) & (labels != VOID)).flatten(1).sum(1).float()
        score = -right if targeted else right
        best = torch.where((score < kept).view(-1, 1, 1, 1), found, best)
        kept = torch.minimum(score, kept)
    return best
