"""What attacks without a radius share: when an image is won, the smallest perturbation that won it, and the lead."""

from __future__ import annotations

import torch
from torch import Tensor

from segaudit.attacks._iterate import whole
from segaudit.nn.precision import exactly
from segaudit.types import VOID, Segmenter, UserError

NORMS = ("linf", "l2")
STRETCHES = (0, 0.01, 0.02, 0.04, 0.08)
"""By how much more than was found a perturbation may be carried on to win."""


def check(steps: int, success: float, norm: str = "linf") -> None:
    """Refuse what no attack of this kind can be run with."""
    whole(steps=steps)
    if not 0 < success <= 1:
        raise UserError(f"success must be a share of the valid pixels above 0 and at most 1, not {success!r}")
    if norm not in NORMS:
        raise UserError(f"norm must be linf or l2, not {norm!r}")


def size(delta: Tensor, norm: str) -> Tensor:
    """The norm of each image's perturbation, N x 1 x 1 x 1."""
    order = torch.inf if norm == "linf" else 2
    norms: Tensor = torch.linalg.vector_norm(delta, order, dim=(1, 2, 3), keepdim=True)
    return norms


class Lead:
    """By how much the label leads its best rival, N x H x W, from the logits N x K x H x W of one forward pass.

    A pixel is lost to the label where this is negative; no number that is read at void means anything.
    """

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self._label = labels.where(labels != VOID, 0)[:, None]
        logits = logits.detach().contiguous()
        self._others = logits.scatter(1, self._label, -torch.inf)
        self._rival = self._others.amax(1, keepdim=True)
        self.values = (logits.gather(1, self._label) - self._rival).squeeze(1)

    def pull_back(self, slope: Tensor) -> Tensor:
        """The gradient at the logits of a loss with these slopes (N x H x W) in the lead."""
        made = torch.eq(self._others, self._rival, out=torch.empty_like(self._others))  # in floats: much faster
        return made.mul_(-slope[:, None]).scatter_(1, self._label, slope[:, None])


class Smallest:
    """The smallest iterate that won each image; until there is one, the iterate that won the most pixels.

    An image is won when at least `success` of its valid pixels are wrong (targeted: on target), so one without a
    valid pixel is won as it is. The clean image is returned only where it is itself a win.
    """

    def __init__(self, clean: Tensor, labels: Tensor, *, success: float, norm: str, targeted: bool) -> None:
        self.images, self.found = clean.clone(), torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        self.size = clean.new_full((len(clean), 1, 1, 1), torch.inf)
        self.valid = labels != VOID
        self._clean, self._norm, self._sign = clean, norm, -1 if targeted else 1
        self._pixels = torch.full((len(clean),), -1, device=clean.device)
        self._needed = (success * self.valid.sum((1, 2)).double() - 1e-6).ceil()

    def __getitem__(self, rows: Tensor) -> Smallest:
        """The same of some images alone."""
        part = object.__new__(Smallest)
        for key, value in vars(self).items():
            setattr(part, key, value[rows] if isinstance(value, Tensor) else value)
        return part

    def won(self, lead: Tensor) -> Tensor:
        """The pixels that are won, N x H x W. A tie is not: which of the two is predicted then is an accident."""
        return ((self._sign * lead) < 0) & self.valid

    def wins(self, lead: Tensor) -> Tensor:
        """Which images are won, N."""
        enough: Tensor = self.won(lead).sum((1, 2)) >= self._needed
        return enough

    def stretched(self, more: float) -> Tensor:
        """The images, their perturbations longer by a share."""
        return (self._clean + (1 + more) * (self.images - self._clean)).clamp(0, 1) if more else self.images

    def see(self, images: Tensor, lead: Tensor, *, clean: bool = False) -> Tensor:
        """Note iterates with the leads of their labels; which of them win, N. clean: these are the images to attack."""
        pixels = self.won(lead).sum((1, 2))
        wins = pixels >= self._needed
        new = size(images - self._clean, self._norm)
        smaller = wins & (new < self.size).flatten()
        nearer = ~self.found & ~wins & (pixels > self._pixels) if not clean else torch.zeros_like(wins)
        # A lerp by 0 or 1 is exact, and keeps a NaN once there is one: a broken gradient is not taken for robustness.
        self.images.lerp_(images, (smaller | nearer).to(images).view(-1, 1, 1, 1))
        self.size = new.where(smaller.view(-1, 1, 1, 1), self.size)
        self._pixels = pixels.where(nearer, self._pixels)
        self.found |= wins
        return wins


@torch.no_grad()
def confirmed(model: Segmenter, best: Smallest, labels: Tensor) -> Tensor:
    """The images that were found, each that won also a win in full precision where one of `STRETCHES` of it is.

    The smallest win lies on the very edge, and bf16 may see it on the other side of it than the verdict does.
    """
    made, still = best.images, best.found
    with exactly():
        for stretch in STRETCHES if still.any() else ():
            tried = best.stretched(stretch)
            wins = best.wins(Lead(model(tried), labels).values) & still
            made = torch.where(wins.view(-1, 1, 1, 1), tried, made)
            still = still & ~wins
            if not still.any():
                break
    return made
