"""The private recipe: DP-SGD, gradients of single units clipped, summed and with noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.nn.norms import coupled
from segaudit.rng import ImageStreams
from segaudit.training import clipping
from segaudit.training.budget import ACCOUNTANTS, budget
from segaudit.training.clipping import Losses
from segaudit.training.course import Course, generator, number
from segaudit.training.schedule import Schedule
from segaudit.training.standard import standard, weights_of
from segaudit.types import VOID, Batch, Segmenter, Streams, UserError

Units = Sequence[tuple[str, str]]
BUDGET = ("epsilon", "delta", "noise", "accountant")
"""Arguments that decide how much noise there is."""
EPSILON = 8.5


def private(
    model: Segmenter,
    batch: Batch,
    *,
    rng: Streams,
    epsilon: float = EPSILON,
    delta: float | None = None,
    norm: float = 2.0,
    units: Units | None = None,
    noise: bool = True,
    accountant: str = "rdp",
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    dice: float = 0.0,
    image_dice: float = 0.0,
) -> Tensor:
    """Cross-entropy of each image by itself, whose gradients the loop clips and puts noise on: DP-SGD.

    epsilon, delta: what the whole training may give away of one unit (`budget.budget`). delta is 1 / units by default,
    as in the study that the seven defenses are of; a promise that is worth more has it far below. The least noise for
    them is found by `accountant`, `rdp` or `prv`. norm: a unit's gradient is clipped to it. units:
    (id, unit) of every image, such as its patient; an image is one by default. noise: false clips alone, and promises
    nothing. image_dice: the factor of the soft Dice loss of each image (`dice`, of a batch, is refused). In each step
    every unit is drawn with the same chance, apart from the others: a step may have many images or none, and takes its
    noise all the same. The schedule's `clip` is not used, nor bfloat16. The random numbers are those of the seed: who
    knows it knows the noise, and two networks of one seed share it: the promise is of one of them. Raises UserError for
    a network or a loss in which images depend on their neighbours, and for other numbers.
    Source: Abadi et al. 2016; by Opacus (Yousefpour et al. 2021).
    """
    _check(
        epsilon=epsilon, delta=delta, norm=norm, noise=noise, accountant=accountant, units=units,
        class_weights=class_weights, label_smoothing=label_smoothing, dice=dice, image_dice=image_dice,
    )  # fmt: skip
    return image_losses(
        model, batch, class_weights=class_weights, label_smoothing=label_smoothing, image_dice=image_dice
    ).mean()


def image_losses(
    model: nn.Module,
    batch: Batch,
    *,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    image_dice: float = 0.0,
) -> Tensor:
    """The loss of each image by itself, N: the mean over its valid pixels, 0 without one."""
    logits: Tensor = model(batch.images).float()
    weight = weights_of(class_weights, logits)
    own: dict[str, Any] = {"weight": weight, "ignore_index": VOID, "label_smoothing": label_smoothing}
    pixels = F.cross_entropy(logits, batch.labels, reduction="none", **own).flatten(1).sum(1)
    valid = batch.labels != VOID
    heavy = valid.to(logits.dtype) if weight is None else weight[batch.labels.where(valid, 0)] * valid
    counted = heavy.flatten(1).sum(1)
    losses = torch.where(counted > 0, pixels / counted.where(counted > 0, 1), 0 * pixels)
    return losses + image_dice * _image_dice(logits, batch.labels) if image_dice else losses


def _image_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - the Dice coefficient of each image, N, the mean of the classes in it; 0 without a valid pixel."""
    valid = (labels != VOID)[:, None]
    p = logits.softmax(1) * valid
    own = torch.zeros_like(p).scatter_(1, labels.where(labels != VOID, 0)[:, None], 1.0) * valid
    true, both, said = own.sum((2, 3)), (p * own).sum((2, 3)), p.sum((2, 3))
    here = true > 0
    each = torch.where(here, 1 - 2 * both / (said + true).where(here, 1), 0 * both)
    return each.sum(1) / here.sum(1).clamp_min(1)


def refuse_coupling(model: nn.Module, losses: Losses, batch: Batch) -> None:
    """Raise UserError where the loss of one image depends on another image, which clipping would not see.

    batch: two images, at least, to try a copy of the network on, as it trains.
    """
    name = coupled(model)
    if name is not None:
        raise UserError(
            f"recipe private: the network's {name} is a norm over the batch, so images depend on their neighbours; "
            "make group norms of all of them first (segaudit.nn.norms:group_norms, as the defense dp does)"
        )
    trial, images = copy.deepcopy(model).train(), batch.images.detach().clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = losses(trial, Batch(images, batch.labels, batch.ids))
        if found.shape != (len(batch),):
            raise UserError(
                f"recipe private: the loss is of the batch as a whole {tuple(found.shape)}, not one for each of its "
                f"{len(batch)} images, as the Dice of a batch is; use `image_dice`"
            )
        first, last = (
            torch.autograd.grad(found[row], images, retain_graph=True, allow_unused=True)[0] for row in (0, -1)
        )
        other, void = torch.cat([batch.images[:1], 1 - batch.images[1:]]), torch.full_like(batch.labels[1:], VOID)
        torch.manual_seed(0)
        with torch.no_grad():  # labels have no slope, and what is detached has none
            beside = losses(trial, Batch(other, torch.cat([batch.labels[:1], void]), batch.ids))
    sloped = (first is not None and bool(first[1:].any())) or (last is not None and bool(last[:-1].any()))
    if sloped or not torch.allclose(beside[0], found[0], rtol=1e-3, atol=1e-5, equal_nan=True):
        raise UserError("recipe private: the loss of an image depends on its neighbours in the batch; take it apart")


class _Private(Course):
    """Poisson draws of units, and steps of DP-SGD."""

    def __init__(self, *own: Any, **named: Any) -> None:
        super().__init__(*own, **named)
        given, ids, self.taken = self.own, self.samples.ids, 0
        _check(**given)
        pairs: dict[str, str] = {} if given["units"] is None else dict(given["units"])
        missing = [name for name in ids if given["units"] is not None and name not in pairs]
        if missing:
            raise UserError(f"recipe private: units says nothing of {missing[0]}; give (id, unit) of every image")
        self.unit = {name: pairs.get(name, name) for name in ids}
        self.members: dict[str, list[int]] = {}
        for row, name in enumerate(ids):
            self.members.setdefault(self.unit[name], []).append(row)
        loss = {key: given[key] for key in ("class_weights", "label_smoothing", "image_dice")}
        self.losses = partial(image_losses, **loss)
        self._probe()
        self.budget = budget(len(ids), len(self.members), self.schedule, **{key: given[key] for key in BUDGET})

    def rows(self, epoch: int) -> list[list[int]]:
        """Of each step the rows of the units that it drew, a unit's together."""
        rng = generator(self.schedule.seed, "order", epoch)
        drawn = torch.rand(self.steps, len(self.members), generator=rng) < self.budget.rate
        members = list(self.members.values())
        return [[row for one in step.nonzero()[:, 0].tolist() for row in members[one]] for step in drawn]

    def step(self, batch: Batch, rng: ImageStreams) -> float:
        """One step of DP-SGD, with noise also where no image was drawn."""
        self.taken += 1
        gradient, loss = clipping.private_gradient(
            self.model,
            self.losses,
            batch,
            [self.unit[name] for name in batch.ids],
            np.random.default_rng(number(self.schedule.seed, "noise", self.taken)),  # torch's has 2^32 seeds alone
            norm=self.own["norm"],
            sigma=self.budget.sigma,
            expected=self.budget.units,
            most=self.schedule.batch,
        )
        self.sound(torch.tensor(loss))
        learnt = [weight for weight in self.model.parameters() if weight.requires_grad]
        for weight, slope in zip(learnt, gradient, strict=True):
            weight.grad = slope
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss / (self.budget.rate * len(self.samples.ids))

    def state(self) -> dict[str, Any]:
        """The steps that were taken, each to be accounted for, and with what noise."""
        own = {"sigma": self.budget.sigma, "rate": self.budget.rate, "norm": self.own["norm"]}
        return own | {"units": len(self.members), "steps": self.taken}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on counting. Raises UserError where the steps so far had other noise than the budget is of, or none."""
        if self.epoch and not state:
            raise UserError(
                "recipe private: the training that is resumed was begun by another recipe: the budget would not hold; "
                "train it again from the start"
            )
        self.taken = int(state.get("steps", 0))
        now = self.state()
        others = [key for key in state if state[key] != now[key]]
        if others:
            raise UserError(
                f"recipe private: the training that is resumed had {others[0]} {state[others[0]]}, not "
                f"{now[others[0]]}: the budget would not hold; train it again from the start"
            )

    def _probe(self) -> None:
        """Refuse coupling, and layers that Opacus gets wrong, as seen on the first two images."""
        device = next(self.model.parameters()).device
        ids = (self.samples.ids * 2)[:2]
        images, labels = zip(*(self.samples.sample(name) for name in ids), strict=True)
        if images[0].shape != images[1].shape:
            return  # the loop says what is wrong with them
        batch = Batch(torch.stack(images), torch.stack(labels), ids).to(device)
        refuse_coupling(self.model, self.losses, batch)
        clipping.verify(self.model.train(), self.losses, batch)


private.course = _Private  # type: ignore[attr-defined]


def _promise(ids: Sequence[str], schedule: Schedule, *, units: Units | None = None, **own: Any) -> dict[str, Any]:
    """The epsilon and delta of a training on these images, and its sigma; without noise only that this is 0."""
    given = {"epsilon": EPSILON} | {key: own[key] for key in BUDGET if key in own}
    whose = dict(units or ())
    found = budget(len(ids), len({whose.get(name, name) for name in ids}), schedule, **given)
    return {"sigma": found.sigma} | ({"epsilon": found.epsilon, "delta": found.delta} if found.sigma else {})


private.promise = _promise  # type: ignore[attr-defined]  # which the card of the weights repeats


def _check(
    *,
    epsilon: Any = 8.5,
    delta: Any = None,
    norm: Any = 2.0,
    units: Any = None,
    noise: Any = True,
    accountant: Any = "rdp",
    class_weights: Any = None,
    label_smoothing: Any = 0.0,
    dice: Any = 0.0,
    image_dice: Any = 0.0,
    **_: Any,
) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    for key, value in (("epsilon", epsilon), ("norm", norm), ("image_dice", image_dice)):
        real = not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value < math.inf
        if not real or (value == 0 and key != "image_dice"):
            least = "of at least 0" if key == "image_dice" else "above 0"
            raise UserError(f"recipe private: {key} must be a number {least}, not {value!r}")
    if delta is not None and (type(delta) is not float or not 0 < delta < 1):
        raise UserError(f"recipe private: delta must be between 0 and 1, such as 1e-5, not {delta!r}")
    if type(noise) is not bool:
        raise UserError(f"recipe private: noise must be true or false, not {noise!r}")
    if accountant not in ACCOUNTANTS:
        raise UserError(f"recipe private: accountant must be {' or '.join(ACCOUNTANTS)}, not {accountant!r}")
    if dice != 0:
        raise UserError(
            "recipe private: dice is of a batch as a whole, so no image's part of it can be clipped; use image_dice"
        )
    if isinstance(class_weights, str):
        raise UserError(f"recipe private: class_weights {class_weights!r} tell of the private images; give numbers")
    if units is not None and not all(len(pair) == 2 and all(type(one) is str for one in pair) for pair in units):
        raise UserError("recipe private: units must be pairs of an image's id and its unit")
    standard.check(label_smoothing=label_smoothing)  # type: ignore[attr-defined]


private.check = _check  # type: ignore[attr-defined]  # of what a spec says, before anything is written
