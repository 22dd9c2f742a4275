"""The vae recipe: how well an image is made anew, and how far its numbers are from standard normal ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segaudit.registry import suggest
from segaudit.training import denoise
from segaudit.training.loop import Judge
from segaudit.training.purify import Attacks, check, inputs, scores, seen
from segaudit.types import VOID, Batch, Segmenter, Streams, UserError

ERRORS = ("squared", "bernoulli")
NEAR = 1e-6
"""How near to 0 and 1 a pixel may be, where its logarithm is taken."""


def vae(
    model: nn.Module,
    batch: Batch,
    *,
    rng: Streams,
    beta: float = 1.0,
    error: str = "squared",
    sigma: float | Sequence[float] = 0.0,
    segmenter: Segmenter | None = None,
    attacks: Attacks = (),
    through: bool = False,
    share: float = 1.0,
    classify: float = 0.0,
) -> Tensor:
    """Reconstruction error plus beta times the KL divergence, of a variational autoencoder (`vae` or `cvae`).

    Both are summed over an image and divided by the number of its values. error: squared, or bernoulli, the
    cross-entropy of pixels in [0, 1]. sigma: of Gaussian noise on what the network sees, as recipe `denoise` has it;
    what is made is compared with the clean image. segmenter, attacks, through, share, classify: as recipe `purify` has
    them, attacked images in place of clean ones; all optional, but for the segmenter where another of them is given.
    Raises UserError for other arguments, and for a class-conditional network on images with a map of classes.
    Source: Kingma & Welling 2014; Higgins et al. 2017 (beta); Im et al. 2017 (noise on what is seen); Li & Ji 2019
    Source: (attacked images); Hwang et al. 2019 (the classifier's loss).
    """
    _check(beta=beta, error=error, sigma=sigma, segmenter=segmenter, attacks=attacks, share=share, classify=classify)
    given = _told(model, batch)
    images = batch.images
    if segmenter is not None and attacks:
        images = inputs(model, batch, rng, segmenter, attacks, through, share, "vae")
    own: Any = model
    mean, log_var = (part.float() for part in own.encode(denoise.noisy(images, sigma, rng), *given))
    z = mean + (log_var / 2).exp() * rng.child("z").normal(torch.empty_like(mean))
    made: Tensor = own.decode(z, *given).float()
    loss = (apart(made, batch.images, error) + beta * kl(mean, log_var)).mean() / batch.images[0].numel()
    return loss + classify * seen(segmenter, made, batch, rng) if segmenter is not None and classify else loss


vae.trains = ("vae", "cvae")  # type: ignore[attr-defined]


def apart(made: Tensor, images: Tensor, error: str) -> Tensor:
    """The reconstruction error of each image, summed over its values: N."""
    if error == "squared":
        return (made - images).square().flatten(1).sum(1)
    p = made.clamp(NEAR, 1 - NEAR)
    return -(images * p.log() + (1 - images) * (1 - p).log()).flatten(1).sum(1)


def kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """The KL divergence of normal numbers N x z from standard normal ones, summed over an image's: N.

    Source: Kingma & Welling 2014, appendix B.
    """
    return (mean.square() + log_var.exp() - 1 - log_var).sum(1) / 2


def _told(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """The classes N that a class-conditional network is told; nothing for any other."""
    if not getattr(model, "conditional", False):
        return ()
    labels = batch.labels.flatten(1)
    if labels.shape[1] != 1 or bool((labels == VOID).any()):
        raise UserError(
            "recipe vae: a cvae is told the class of each image, and these have a map of classes: give `vae`"
        )
    return (labels[:, 0],)


def _judge(
    *,
    sigma: float | Sequence[float] = 0.0,
    segmenter: Segmenter | None = None,
    attacks: Attacks = (),
    through: bool = False,
    **_: Any,
) -> Judge:
    """The segmenter behind it where there is one, else the images that it makes at the largest sigma."""
    if segmenter is None:
        return partial(denoise.psnr, sigma=denoise.sigmas(sigma)[1])
    return partial(scores, segmenter=segmenter, attacks=attacks, through=through)


vae.judge = _judge  # type: ignore[attr-defined]


def _check(
    *,
    beta: Any = 1.0,
    error: Any = "squared",
    sigma: Any = 0.0,
    segmenter: Any = None,
    attacks: Any = (),
    share: Any = 1.0,
    classify: Any = 0.0,
    **_: Any,
) -> None:
    """Refuse what cannot be. Raises UserError."""
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta < math.inf:
        raise UserError(f"recipe vae: beta must be a number of at least 0, not {beta!r}")
    if error not in ERRORS:
        near = suggest(str(error), ERRORS)
        raise UserError(f"recipe vae: error must be {' or '.join(ERRORS)}, not {error!r}{near}")
    denoise.sigmas(sigma, "vae")
    check(share=share, classify=classify, recipe="vae")
    if segmenter is None and (attacks or classify):
        what = "attacks" if attacks else "classify"
        raise UserError(
            f"recipe vae: {what} needs a `segmenter`, such as `{{source: classic, name: lenet, weights: ...}}`"
        )


vae.check = _check  # type: ignore[attr-defined]
