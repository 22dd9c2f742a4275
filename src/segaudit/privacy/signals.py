"""What a network's answer and an image's mask come to, in the numbers that membership attacks compare."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segaudit.metrics import confusion
from segaudit.types import VOID, Floats, Ints, UserError

Bools = NDArray[np.bool_]

CLIP = 15.0
"""The most that one pixel can say, in nats: no log p is below -CLIP, no log-odds beyond +-CLIP.

float32 gives no probability between 1 - 1e-7 and 1, and a label-only answer (one-hot logits) knows 0 and 1 alone."""
BAND = 0.02
"""How far the boundary band reaches to either side of a boundary, in shares of the picture's diagonal."""
NAMES = (
    "loss",
    "log_p",
    "phi",
    "entropy",
    "dice_logit",
    "dice",
    "miou",
    "band_loss",
    "band_phi",
    "band_entropy",
    "boundary_error",
    "class_phi",
)
"""What `measure` gives, `class_phi` by class and all others one number an image."""


@torch.no_grad()
def measure(logits: Tensor, labels: Tensor) -> dict[str, Floats]:
    """Signals by name of logits N x K x H x W (K at least 2) and labels N x H x W: N each, `class_phi` N x K, float64.

    Of the valid pixels, means over an image: `loss`, the cross-entropy in nats, `log_p` = -loss, `phi`, the log-odds
    log p_y - log sum of the others, and `entropy` of the softmax, in nats; `class_phi` over those of a class, nan where
    it is not in the mask. `band_loss`, `band_phi`, `band_entropy`: over those near a boundary of the mask, or all where
    it has none. `boundary_error`: the share of these that argmax gets wrong. `dice`, of argmax, and `dice_logit`, the
    log-odds of the soft one: the mean of the classes in the mask, with two classes that of the second where it is
    there. `miou`: of argmax, the mean of the classes in the mask. No pixel says more than `CLIP`.
    An image without a valid pixel has nan for all. Each image is measured by itself, so a batch changes no number.
    Raises ValueError for shapes that do not fit and labels outside of the K classes, UserError for logits of a valid
    pixel without a softmax: nan or inf.
    Source: Carlini et al. 2022 (phi); Milletari et al. 2016 (soft Dice); Kohli et al. 2009 (the band).
    """
    if logits.ndim != 4 or logits.shape[1] < 2 or labels.shape != (len(logits), *logits.shape[2:]):
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: not N x K x H x W and N x H x W"
        )
    guess = _largest(logits)
    counts = confusion.count(guess, labels, logits.shape[1])
    chosen = counted(counts.target)
    rows = [_soft(*pair) for pair in zip(logits, labels, guess, chosen, strict=True)]
    each = confusion.iou(*(part.astype(np.float64) for part in (counts.intersection, counts.union, counts.target)))
    found = {"dice": _mean(2 * each / (1 + each), chosen), "miou": _mean(each, counts.target > 0)}
    for name in NAMES:
        if name not in found:
            shape = (len(rows), logits.shape[1])[: 2 if name == "class_phi" else 1]
            found[name] = np.array([row[name] for row in rows], np.float64).reshape(shape)
    return {name: found[name] for name in NAMES}


def counted(target: Ints) -> Bools:
    """The classes whose Dice is an image's, N x K, from the pixels of each class: those in the mask.

    With two classes the second alone where it is there, as a foreground is, and the first in an empty mask.
    """
    chosen = target > 0
    if target.shape[1] == 2:
        chosen[:, 0] &= ~chosen[:, 1]
    return chosen


def _soft(logits: Tensor, labels: Tensor, guess: Tensor, chosen: Bools) -> dict[str, float | list[float]]:
    """What the softmax of one image says: logits K x H x W, labels and predicted classes H x W."""
    valid = labels != VOID
    z, y = logits.double()[:, valid], labels[valid]  # K x M, M
    band = _band(labels)[valid]
    band = band if bool(band.any()) else torch.ones_like(band)
    others = z.scatter(0, y[None], -torch.inf).logsumexp(0)
    odds = z.gather(0, y[None])[0] - others  # stable where p is nearly 1, as log p - log(1 - p) is not
    phi, loss = odds.clamp(-CLIP, CLIP), -F.logsigmoid(odds).clamp_min(-CLIP)
    p = z.softmax(0)
    if bool(p.isnan().any()):  # else the image would pass for one without a valid pixel, and the network for private
        raise UserError("membership: a network answers nan or inf in place of logits; train it with a lower lr")
    entropy = torch.special.entr(p).sum(0)
    pixels = torch.bincount(y, minlength=len(z))
    both = torch.bincount(y, p.gather(0, y[None])[0], len(z))
    apart = (p.sum(1) + pixels - 2 * both).clamp_min(0)
    kept = torch.from_numpy(chosen).to(p.device)
    whole = 2 * both[kept] + apart[kept]
    dice, lack = (2 * both[kept] / whole).mean(), (apart[kept] / whole).mean()
    wrong = (guess[valid] != y).double()
    found = {
        "loss": loss.mean(),
        "log_p": -loss.mean(),
        "phi": phi.mean(),
        "entropy": entropy.mean(),
        "dice_logit": (dice.log() - lack.log()).clamp(-CLIP, CLIP),
        "band_loss": loss[band].mean(),
        "band_phi": phi[band].mean(),
        "band_entropy": entropy[band].mean(),
        "boundary_error": wrong[band].mean(),
    }
    by_class = torch.bincount(y, phi, len(z)) / pixels  # 0 / 0, which is nan, where the class is not there
    return {name: float(value) for name, value in found.items()} | {"class_phi": by_class.tolist()}


def _largest(logits: Tensor) -> Tensor:
    """argmax over the classes, N x H x W, the first of equal ones, in a third of the time that torch takes."""
    best, guess = logits[:, 0], torch.zeros_like(logits[:, 0], dtype=torch.int64)
    for k in range(1, logits.shape[1]):
        guess = torch.where(logits[:, k] > best, k, guess)
        best = torch.maximum(best, logits[:, k])
    return guess


def _band(labels: Tensor) -> Tensor:
    """The pixels of a mask H x W in whose square window another label is seen, bool; void counts as no label."""
    reach = max(1, round(BAND * math.hypot(*labels.shape)))
    valid = labels != VOID
    high, low = labels.where(valid, -1), -labels.where(valid, VOID + 1)
    for side in ((2 * reach + 1, 1), (1, 2 * reach + 1)):  # a square's largest is that of its columns' largest
        pads = (side[0] // 2, side[1] // 2)
        high, low = (F.max_pool2d(own[None].float(), side, 1, pads)[0] for own in (high, low))
    return valid & (high != -low)


def _mean(values: Floats, chosen: Bools) -> Floats:
    """The mean of the chosen values of each row; nan where none is."""
    with np.errstate(invalid="ignore"):
        made: Floats = np.where(chosen, values, 0.0).sum(1) / chosen.sum(1)
    return made
