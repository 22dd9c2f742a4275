"""Certificates by randomised smoothing: the pixels that no small enough L2 perturbation changes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from scipy.special import betainc  # type: ignore[import-untyped]
from torch import Tensor

from segaudit.registry import suggest
from segaudit.rng import drawing, is_random, streams_of
from segaudit.types import Floats, Ints, Segmenter, Streams, UserError

ABSTAIN = -1
"""The class of a pixel that is not certified."""
CORRECTIONS = ("holm", "bonferroni")
"""How the tests of an image's pixels are corrected for being many."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """How noisy copies of images voted, N x H x W int64 each (N x 1 x 1: a classifier).

    classes: what the first n0 draws say most often, the first of equals. votes: how many of the n draws after those
    say it too.
    """

    classes: Tensor
    votes: Tensor
    n: int


def certify(
    model: Segmenter,
    images: Tensor,
    *,
    rng: Streams,
    n: int = 1000,
    tau: float = 0.75,
    alpha: float = 1e-4,
    correction: str = "holm",
    valid: Tensor | None = None,
    **own: Any,
) -> Tensor:
    """SegCertify: the smoothed model's classes N x H x W where they are certified, `ABSTAIN` elsewhere.

    With probability 1 - alpha, all certified pixels of an image keep their class in the smoothed model under any
    perturbation of a smaller L2 norm than `radius(sigma, tau)`. Each image is tested by itself; valid: the pixels
    N x H x W that are tested, all unless given. n, own (sigma, n0, batch): see `ballot`; tau, alpha, correction: see
    `least_votes`. Of a classifier it is one test an image.
    Source: Fischer et al. 2021 (SegCertify); Cohen et al. 2019 (one class an image).
    """
    check(tau=tau, n=n, alpha=alpha, correction=correction)
    found = ballot(model, images, rng=rng, n=n, **own)
    made = torch.full_like(found.classes, ABSTAIN)
    for i in range(len(images)):
        tested = torch.ones_like(made[i], dtype=torch.bool) if valid is None else valid[i].to(made.device)
        pixels = torch.bincount(found.votes[i][tested], minlength=n + 1).cpu().numpy()
        sure = tested & (found.votes[i] >= least_votes(pixels, tau=tau, alpha=alpha, correction=correction))
        made[i] = torch.where(sure, found.classes[i], ABSTAIN)
    return made


@torch.no_grad()
def ballot(
    model: Segmenter,
    images: Tensor,
    *,
    rng: Streams,
    sigma: float = 0.25,
    n0: int = 100,
    n: int = 1000,
    batch: int = 32,
) -> Ballot:
    """Let copies of each image in Gaussian noise vote: n0 of them choose a class a pixel, n others confirm it.

    sigma: of the noise on images in [0, 1]; the copies are not clipped. Every copy has noise of its own, the next of
    its image's stream, so that neither the other images nor `batch`, the copies that pass at once, change a draw.
    A random model draws from `rng.drawing`, each image from its own stream too. No prediction is kept.
    Raises UserError for wrong arguments and for NaN logits.
    """
    check(sigma=sigma, n0=n0, n=n, batch=batch)
    random = streams_of(images) if is_random(model) else None
    step = batch if random is None else 1  # what a random model draws would hang on its batch
    chosen, agreed = [], []
    for i in range(len(images)):
        image, row = images[i : i + 1], torch.tensor([i])
        own, counts = rng[row], image.new_zeros(0, dtype=torch.int64)
        with nullcontext() if random is None else drawing(random[row]):
            for guess in _guesses(model, image, own, sigma, n0, step):
                if not len(counts):
                    counts = guess.new_zeros(model.num_classes, *guess.shape[1:])
                counts.scatter_add_(0, guess, torch.ones_like(guess))
            # Which of equals argmax finds is not defined: the first is made the largest.
            first = torch.arange(len(counts), 0, -1, device=counts.device).view(-1, 1, 1)
            candidate = (counts * (len(counts) + 1) + first).argmax(0)
            votes = torch.zeros_like(candidate)
            for guess in _guesses(model, image, own, sigma, n, step):
                votes += (guess == candidate).sum(0)
        chosen.append(candidate)
        agreed.append(votes)
    return Ballot(torch.stack(chosen), torch.stack(agreed), n)


def least_votes(pixels: Ints, *, tau: float, alpha: float = 1e-4, correction: str = "holm") -> int:
    """The fewest votes that certify a pixel of an image; n + 1 where no number of votes does.

    pixels: n + 1 numbers, how many of the image's pixels have 0, 1, ..., n votes: they are tested together. The
    hypothesis of each is that its class has a probability of at most tau; alpha is the chance that any of those
    rejected was true. correction: `holm`, or `bonferroni`, which never certifies more.
    Source: Fischer et al. 2021; Holm 1979.
    """
    # Equal votes are equal p-values, and those with more votes are rejected before: so many hypotheses are left.
    left = np.cumsum(pixels) if correction == "holm" else np.full(len(pixels), pixels.sum())
    kept = np.flatnonzero(_chances(len(pixels) - 1, tau) > alpha / np.maximum(left, 1))
    return int(kept[-1]) + 1  # no vote at all has a chance of 1, and is never rejected


def radius(sigma: float, tau: float) -> float:
    """The L2 radius, for images in [0, 1], in which a class of a probability above tau stays the most likely one.

    Source: Cohen et al. 2019, theorem 1, with a lower bound of the probability alone.
    """
    return sigma * NormalDist().inv_cdf(tau)


def check(**given: Any) -> None:
    """Refuse what certification cannot be asked for, in one line that names it.

    given: any of sigma, tau, n0, n, alpha, correction and batch.
    """
    for key in given.keys() & {"n0", "n", "batch"}:
        if type(given[key]) is not int or given[key] < 1:
            raise UserError(f"certification: {key} must be a whole number of at least 1, not {given[key]!r}")
    for key, low, high, closed in (("sigma", 0, math.inf, False), ("tau", 0.5, 1, True), ("alpha", 0, 1, False)):
        value = given.get(key, (low + 1) / 2)
        if type(value) not in (int, float) or not (low < value < high or (closed and value == low)):
            wanted = "above 0" if high == math.inf else f"{'of at least' if closed else 'above'} {low} and below 1"
            raise UserError(f"certification: {key} must be a number {wanted}, not {value!r}")
    word = given.get("correction", "holm")
    if word not in CORRECTIONS:
        near = suggest(str(word), CORRECTIONS)
        raise UserError(f"certification: correction must be {' or '.join(CORRECTIONS)}, not {word!r}{near}")
    if given.keys() >= {"n", "tau", "alpha"} and given["tau"] ** given["n"] > given["alpha"]:
        needed = math.ceil(math.log(given["alpha"]) / math.log(given["tau"]))
        raise UserError(
            f"certification: n {given['n']} certifies nothing at tau {given['tau']:g} and alpha {given['alpha']:g}, "
            f"however the draws vote; one pixel alone needs {needed}"
        )


def _guesses(model: Segmenter, image: Tensor, own: Streams, sigma: float, draws: int, step: int) -> Iterator[Tensor]:
    """The predictions, at most `step` x H x W at a time, on so many noisy copies of one image."""
    for start in range(0, draws, step):
        copies = image.expand(min(step, draws - start), -1, -1, -1)
        noise = own[torch.zeros(len(copies), dtype=torch.int64)].normal(copies)
        logits: Tensor = model(copies + sigma * noise)
        if not logits.isfinite().all():
            raise UserError(f"certification: the model gives NaN or infinite logits on an image in noise of {sigma:g}")
        yield logits.argmax(1)


@lru_cache(maxsize=256)
def _chances(n: int, tau: float) -> Floats:
    """The chance of 0, 1, ..., n votes or more, n + 1 numbers, where each of n draws votes with probability tau."""
    votes = np.arange(1, n + 1)
    made: Floats = np.concatenate([[1.0], betainc(votes, n + 1 - votes, tau)])
    made.setflags(write=False)
    return made
