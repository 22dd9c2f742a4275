"""An attack among the images that a generator can make."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.attacks._iterate import project, whole
from segaudit.nn.latent import alike, descend, sampler
from segaudit.nn.straight import through
from segaudit.types import VOID, Segmenter, Streams, UserError

NORMS = ("linf", "l2")
SMALLEST = 1e-6
"""The least radius that distances are measured by."""


def on_manifold(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    generator: Any = None,
    steps: int = 200,
    rate: float = 0.1,
    restarts: int = 4,
    norm: str = "linf",
    weight: float = 10.0,
    targeted: bool = False,
) -> Tensor:
    """On-manifold search: an image that a generator makes, in the ball and wrong, which its inversion cannot take away.

    generator: the path of its weights, as `gan_inversion` has it; without one, that of the defense which the model is
    behind. From `restarts` starts, with each label where the generator has some, Adam descends in z: the pixels' mean
    logarithm of the odds of being right, and `weight` times the distance to the ball, in radii; rate: its first step in
    units of z. Behind `gan_inversion` the bare model is asked about what is made, as that is where the inversion of it
    ends; where the inversion itself is the answer, what is made must only be of another label. Any other model is asked
    about what is handed over: what is made, carried to the ball. Each image keeps the search that came furthest. Behind
    `gan_inversion` a run counts no passes, as none is through the whole model. Raises UserError for no generator, for
    images of another shape, and for a generator without labels where the inversion is the answer.
    Source: Jalal et al. 2017 (overpowered attack); on Defense-GAN Athalye, Carlini & Wagner 2018.
    """
    whole(steps=steps, restarts=restarts)
    if norm not in NORMS:
        raise UserError(f"norm must be linf or l2, not {norm!r}")
    for key, value in (("rate", rate), ("weight", weight)):
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise UserError(f"{key} must be a number above 0, not {value!r}")
    inside = next((own for part in model.modules() if (own := getattr(part, "manifold", None)) is not None), None)
    given = inside[0] if generator is None and inside is not None else generator
    own = sampler("attack 'on_manifold'", given).to(images.device)
    asked, answers = (model, True) if inside is None else (inside[1], inside[1] is not None)
    if not answers and not own.classes:
        raise UserError(
            "attack 'on_manifold': the answer is the label that an inversion comes nearest with, and this generator "
            "has none; leave generator out for that of the defense"
        )
    kinds = max(1, own.classes)
    each = kinds * restarts
    clean, truth = images.repeat_interleave(each, 0), labels.repeat_interleave(each, 0)
    names = torch.arange(kinds, device=images.device).repeat_interleave(restarts).repeat(len(images))
    radius = max(SMALLEST, eps * (images[0].numel() ** 0.5 if norm == "linf" else 1))

    def make(z: Tensor, rows: Tensor) -> Tensor:
        made: Tensor = own.sample(z, names[rows] if own.classes else None)
        alike("attack 'on_manifold'", made, images)
        return made

    def objective(z: Tensor, rows: Tensor) -> Tensor:
        made = make(z, rows)
        kept = project(made.detach(), clean, eps, norm)
        off: Tensor = torch.linalg.vector_norm(made - kept, dim=(1, 2, 3)) * (weight / radius)
        if not answers:
            return off
        return off + odds(asked(through(made, kept) if inside is None else made), truth, targeted)

    drawn = rng.normal(images.new_empty(len(images), restarts, own.latent))
    z, least = descend(objective, drawn.repeat_interleave(kinds, 0).flatten(0, 1), steps=steps, rate=rate)
    if not answers:  # the label of what is made is what will be said of it
        right = names == truth.flatten()
        least = least.masked_fill(~right if targeted else right, torch.inf)
    best = least.view(-1, each).argmin(1) + each * torch.arange(len(images), device=images.device)
    with torch.no_grad():
        return project(make(z[best], best), images, eps, norm)


def odds(logits: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """The mean over an image's valid pixels of log(1 + the odds of the label), N; targeted: the odds against it.

    A pixel that is won adds next to nothing, and one that is far from it has a slope of 1.
    """
    valid = labels != VOID
    index = labels.where(valid, 0)[:, None]
    lead = logits.gather(1, index).squeeze(1) - logits.scatter(1, index, -torch.inf).logsumexp(1)
    each = F.softplus(-lead if targeted else lead) * valid
    return each.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp_min(1)
