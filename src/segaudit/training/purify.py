"""The purify recipe: squared error to the clean image, of what a purifier makes of an attacked one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segaudit.metrics import confusion
from segaudit.rng import ImageStreams
from segaudit.training.adversarial import attacked
from segaudit.training.denoise import TRAINS
from segaudit.training.loop import Judge, stack
from segaudit.training.schedule import Samples
from segaudit.training.standard import standard
from segaudit.types import Batch, Counts, Segmenter, Streams, UserError

Attacks = Sequence[Callable[..., Tensor]]


def purify(
    model: nn.Module,
    batch: Batch,
    *,
    rng: Streams,
    segmenter: Segmenter,
    attacks: Attacks,
    through: bool = False,
    share: float = 1.0,
    classify: float = 0.0,
) -> Tensor:
    """Mean squared error to the clean image, of what a purifier makes of an attacked one.

    segmenter: a model as a run's spec has it, which is attacked and not trained. attacks: one or several with their
    arguments, of which each batch draws one: `[{name: fgsm, eps: 0.3}, {name: pgd, eps: 0.15, steps: 20}]`. through:
    the attack knows of the purifier, and goes through it as it stands now (a draw a pass where it draws), which is
    adversarial training of the purifier; otherwise it is made on the bare segmenter. share: above 0 and up to 1, of the
    batch that is attacked (at least one image); the rest is clean. classify: the factor of the segmenter's
    cross-entropy on the purified image, against the truth, which is added. Raises UserError for other numbers, and for
    an attack whose images are none.
    Source: Gu & Rigazio 2015 (attacked images to clean ones); Liao et al. 2018 (what the model sees of it); with
    Source: through Madry et al. 2018.
    """
    check(share=share, classify=classify)
    made: Tensor = model(inputs(model, batch, rng, segmenter, attacks, through, share))
    loss = (made.float() - batch.images).square().mean()
    return loss + classify * seen(segmenter, made, batch, rng) if classify else loss


def inputs(
    model: nn.Module,
    batch: Batch,
    rng: Streams,
    segmenter: Segmenter,
    attacks: Attacks,
    through: bool,
    share: float,
    recipe: str = "purify",
) -> Tensor:
    """The images of a batch, a share of them attacked by one of the attacks."""
    segmenter.to(batch.images.device)
    attack = attacks[int(rng.child("which").integers(len(attacks))[0])]
    rows = torch.arange(max(1, round(share * len(batch))))  # an epoch's order is random, so these are any images
    victim = Behind(model, segmenter) if through else segmenter
    made = attacked(victim, batch[: len(rows)], attack, rng.child("attack")[rows], recipe)
    return torch.cat([made, batch.images[len(rows) :]]).contiguous(memory_format=torch.channels_last)


def seen(segmenter: Segmenter, made: Tensor, batch: Batch, rng: Streams) -> Tensor:
    """The cross-entropy of a segmenter on purified images, against the truth."""
    return standard(segmenter.to(made.device), Batch(made, batch.labels, batch.ids), rng=rng)


class Behind(Segmenter):
    """A segmenter that sees what a purifier makes of its images."""

    def __init__(self, purifier: nn.Module, segmenter: Segmenter) -> None:
        super().__init__()
        self.purifier, self.segmenter, self.class_names = purifier, segmenter, segmenter.class_names

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W of images in [0, 1]."""
        logits: Tensor = self.segmenter(self.purifier(images))
        return logits


def scores(
    model: nn.Module,
    samples: Samples,
    batch: int = 8,
    *,
    segmenter: Segmenter,
    attacks: Attacks = (),
    through: bool = False,
) -> dict[str, float]:
    """The data set's `miou` and `accuracy` of a segmenter behind a purifier, on clean images and on attacked ones.

    Attacked images are told under names that end in `_adaptive` where the attack goes through the purifier, in
    `_oblivious` otherwise; of several attacks the worst. The same in every call, whatever a random purifier draws; an
    attack on it sees a draw a pass, and no mean of several, as in an audit.
    """
    model.eval()
    device = next(model.parameters()).device
    whole = Behind(model, segmenter.to(device))
    rows: list[list[Counts]] = [[] for _ in range(1 + len(attacks))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for start in range(0, len(samples.ids), batch):
            ids = samples.ids[start : start + batch]
            images, labels = zip(*(samples.sample(name) for name in ids), strict=True)
            own = Batch(stack(images).to(device), torch.stack(labels).to(device), ids)
            for number, attack in enumerate([None, *attacks]):
                given = own.images
                if attack is not None:
                    given = attacked(whole if through else segmenter, own, attack, ImageStreams(0, ids, f"{number}"))
                with torch.no_grad():
                    guess = whole(given.contiguous(memory_format=torch.channels_last)).argmax(1).cpu()
                rows[number].append(confusion.count(guess, torch.stack(labels), whole.num_classes))
    found = [confusion.join(own) for own in rows]
    made = {"miou": confusion.miou(found[0]), "accuracy": confusion.accuracy(found[0])}
    if attacks:
        end = "adaptive" if through else "oblivious"
        made[f"miou_{end}"] = min(confusion.miou(own) for own in found[1:])
        made[f"accuracy_{end}"] = min(confusion.accuracy(own) for own in found[1:])
    return made


def _judge(*, segmenter: Segmenter, attacks: Attacks, through: bool = False, **_: Any) -> Judge:
    return partial(scores, segmenter=segmenter, attacks=attacks, through=through)


purify.trains = TRAINS  # type: ignore[attr-defined]
purify.judge = _judge  # type: ignore[attr-defined]  # which those read who train: what it trains is no segmenter


def check(*, share: Any = 1.0, classify: Any = 0.0, recipe: str = "purify", **_: Any) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise UserError(f"recipe {recipe}: share must be above 0 and at most 1, not {share!r}")
    if isinstance(classify, bool) or not isinstance(classify, (int, float)) or not 0 <= classify < math.inf:
        raise UserError(f"recipe {recipe}: classify must be a number of at least 0, not {classify!r}")


purify.check = check  # type: ignore[attr-defined]
