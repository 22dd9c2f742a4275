"""CosPGD."""

from __future__ import annotations

from torch import Tensor

from segaudit.attacks._iterate import iterate, random_start, whole
from segaudit.attacks._losses import Seen
from segaudit.types import VOID, Segmenter, Streams, UserError


def cospgd(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int = 20,
    step_size: float | None = None,
    norm: str = "linf",
    targeted: bool = False,
    start: bool = True,
    squash: str = "softmax",
) -> Tensor:
    """CosPGD: PGD on a cross-entropy weighed by how well each pixel's prediction agrees with its label.

    The weight is the cosine of squashed logits and one-hot label (targeted: 1 - cosine), without a gradient of its
    own. squash: `softmax`, or `sigmoid` as the SEA paper ran it. step_size: 2.5 eps / steps unless given.
    start: begin at a random point of the ball.
    Source: Agnihotri et al. 2024 (CosPGD).
    """
    whole(steps=steps)
    if squash not in ("softmax", "sigmoid"):
        raise UserError(f"squash must be softmax or sigmoid, not {squash!r}")

    def goal(images: Tensor, step: int) -> Tensor:
        seen = Seen(model(images), labels, targeted)
        agreement = cosine(seen, squash)
        return seen.toward((1 - agreement if targeted else agreement) * seen.ce).sum()

    begin = random_start(images, eps, norm, rng.child("restart0")) if start else images
    step_size = 2.5 * eps / steps if step_size is None else step_size
    return iterate(goal, begin, images, eps=eps, step_size=step_size, steps=steps, norm=norm)


def cosine(seen: Seen, squash: str) -> Tensor:
    """The cosine of squashed logits with the one-hot label, N x H x W in [0, 1]; of class 0 at void.

    That is the label's own entry over the length, p_y / ||p||.
    """
    p = seen.p if squash == "softmax" else seen.logits.detach().sigmoid()
    own = p.gather(1, seen.labels.where(seen.labels != VOID, 0)[:, None]).squeeze(1)
    length = p.square().sum(1).sqrt()  # vector_norm takes 20 times as long
    return own / length.clamp_min(1e-12)
