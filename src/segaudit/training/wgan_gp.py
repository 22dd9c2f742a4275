"""The WGAN-GP recipe: a generator against a critic whose slope is held at 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segaudit.metrics import frechet as distances
from segaudit.rng import ImageStreams
from segaudit.training.loop import Judge, stack
from segaudit.training.schedule import Samples
from segaudit.types import Batch, Segmenter, Streams, UserError


def wgan_gp(
    model: nn.Module,
    batch: Batch,
    *,
    rng: Streams,
    penalty: float = 10.0,
    critic_steps: int = 5,
    classifier: Segmenter | None = None,
) -> Tensor:
    """Wasserstein loss with a gradient penalty, for a generator of images and its critic (`wgan`, `cwgan`).

    A batch is a step of one of them: `critic_steps` of the critic, then one of the generator; the model counts them in
    its `turn`, so that a resumed training goes on where it was. penalty: of the critic's slope, the squared distance of
    its length from 1, at one point a pair of images between a true one and one that was made; in float32. Betas such as
    [0, 0.9] suit it, with no weight decay. classifier: a model as a run's spec has it, which is not trained: what is
    held out is then scored by the Frechet distance in its features, else by the critic's gap. Raises UserError for
    other numbers, and where a model with labels meets images that have not one each.
    Source: Gulrajani et al. 2017 (WGAN-GP); with labels Mirza & Osindero 2014.
    """
    _check(penalty=penalty, critic_steps=critic_steps)
    net: Any = model
    labels = _labels(net, batch)
    z = rng.child("z").normal(batch.images.new_empty(len(batch), net.latent))
    turn = int(net.turn) % (critic_steps + 1)
    net.turn += 1
    if turn == critic_steps:
        with _frozen(net.critic):
            score: Tensor = net.score(net.sample(z, labels), labels)
        return -score.float().mean()
    with torch.no_grad():
        made = net.sample(z, labels)
    gap: Tensor = net.score(batch.images, labels).float().mean() - net.score(made, labels).float().mean()
    between = rng.child("between").uniform(batch.images[:, :1, :1, :1])
    loss: Tensor = penalty * slope_penalty(partial(net.score, labels=labels), batch.images, made, between) - gap
    return loss


def slope_penalty(score: Callable[[Tensor], Tensor], images: Tensor, made: Tensor, between: Tensor) -> Tensor:
    """The mean of (|slope of the score| - 1)^2, one point for each of N images, with a gradient in the critic.

    between: N x 1 x 1 x 1 in [0, 1], how far each point is on the way from an image to the one that was made.
    """
    with torch.autocast(images.device.type, enabled=False):  # a slope of slopes in bfloat16 is mostly rounding
        point = images.lerp(made.to(images.dtype), between).detach().requires_grad_()
        (slope,) = torch.autograd.grad(score(point).sum(), point, create_graph=True)
        length: Tensor = torch.linalg.vector_norm(slope, dim=(1, 2, 3))
        return (length - 1).square().mean()


@torch.no_grad()
def critic_gap(model: nn.Module, samples: Samples, batch: int = 8) -> dict[str, float]:
    """`critic_gap`: how much higher the critic scores the held-out images than as many that the generator makes."""
    net: Any = model
    gaps = [net.score(true, labels) - net.score(made, labels) for true, made, labels in _pairs(net, samples, batch)]
    return {"critic_gap": float(torch.cat(gaps).mean())}


@torch.no_grad()
def apart(model: nn.Module, samples: Samples, batch: int = 8, *, classifier: Segmenter) -> dict[str, float]:
    """The Frechet distance between the held-out images and as many that the generator makes, under the classifier's
    name; the images that are made are the same ones in every call but for the generator."""
    classifier.to(next(model.parameters()).device)
    true, made = zip(
        *((distances.features(classifier, own) for own in pair[:2]) for pair in _pairs(model, samples, batch)),
        strict=True,
    )
    name = str(getattr(classifier, "title", "classifier"))
    return {distances.named(name): distances.frechet(torch.cat(true), torch.cat(made))}


def _judge(*, classifier: Segmenter | None = None, **_: Any) -> Judge:
    return critic_gap if classifier is None else partial(apart, classifier=classifier)


wgan_gp.judge = _judge  # type: ignore[attr-defined]  # which those read who train: what it trains is no segmenter
wgan_gp.trains = ("wgan", "cwgan")  # type: ignore[attr-defined]


def _check(*, penalty: Any = 10.0, critic_steps: Any = 5, **_: Any) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    if isinstance(penalty, bool) or not isinstance(penalty, (int, float)) or not 0 < penalty < math.inf:
        raise UserError(f"recipe wgan_gp: penalty must be a number above 0, not {penalty!r}")
    if type(critic_steps) is not int or critic_steps < 1:
        raise UserError(f"recipe wgan_gp: critic_steps must be a whole number of at least 1, not {critic_steps!r}")


wgan_gp.check = _check  # type: ignore[attr-defined]


def _labels(net: Any, batch: Batch) -> Tensor | None:
    """The label of each image, N; None for a model without. Raises UserError."""
    if not all(hasattr(net, part) for part in ("generator", "critic", "turn")):
        raise UserError(
            f"recipe wgan_gp: it trains a generator with its critic (wgan, cwgan), not {type(net).__name__}"
        )
    if not net.classes:
        return None
    if batch.labels.shape[1:] != (1, 1) or batch.labels.max() >= net.classes:
        raise UserError(
            f"recipe wgan_gp: a generator with labels needs one of {net.classes} for each image, and the labels of "
            f"{batch.ids[0]} and others are {tuple(batch.labels.shape[1:])} with numbers up to {batch.labels.max()}"
        )
    return batch.labels.flatten()


def _pairs(net: Any, samples: Samples, batch: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Held-out images, images that are made, and the labels of both."""
    net.eval()
    device = next(net.parameters()).device
    for start in range(0, len(samples.ids), batch):
        ids = samples.ids[start : start + batch]
        images, maps = zip(*(samples.sample(name) for name in ids), strict=True)
        own = Batch(stack(images), torch.stack(maps), tuple(ids)).to(device)
        labels = _labels(net, own)
        z = ImageStreams(0, ids, "wgan_gp").normal(own.images.new_empty(len(ids), net.latent))
        yield own.images, net.sample(z, labels), labels


@contextmanager
def _frozen(part: nn.Module) -> Iterator[None]:
    """No gradients of a part's weights inside the block, so that the optimizer leaves them as they are."""
    learnt = [weight for weight in part.parameters() if weight.requires_grad]
    for weight in learnt:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learnt:
            weight.requires_grad_(True)
