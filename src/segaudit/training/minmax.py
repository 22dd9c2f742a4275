"""The min-max recipe: against an adversary that is trained beside the network to tell members from others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.nn.output_net import OutputNet
from segaudit.rng import ImageStreams
from segaudit.training.course import Course, generator, number
from segaudit.training.loop import Views, collate
from segaudit.training.schedule import Samples
from segaudit.training.standard import cross_entropy, standard
from segaudit.types import Batch, Segmenter, Streams, UserError


def minmax(
    model: Segmenter,
    batch: Batch,
    *,
    rng: Streams,
    reference: Sequence[str] = (),
    weight: float = 0.4,
    adversary_steps: int = 1,
    adversary_lr: float = 1e-3,
    adversary: OutputNet | None = None,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    dice: float = 0.0,
) -> Tensor:
    """Cross-entropy, and `weight` times the mean of what an adversary takes for the chance that images are members.

    adversary: a network that sees outputs and masks; before each step the loop trains it for `adversary_steps`, with
    Adam at `adversary_lr`, to tell the batch from as many images of the reference, both as the network in eval mode
    answers them. reference: ids of images of the same samples that are not trained on. weight: 0.4 is 0.05 for each
    image of a batch of 8. Raises UserError for other numbers, and for a reference that is empty or trained on.
    Source: Nasr et al. 2018 (min-max membership privacy game).
    """
    _check(weight=weight, adversary_steps=adversary_steps, adversary_lr=adversary_lr)
    if adversary is None:
        raise UserError("recipe minmax: it is the training loop that has an adversary; train with it")
    logits: Tensor = model(batch.images).float()
    loss = cross_entropy(logits, batch.labels, class_weights, label_smoothing, dice)
    with torch.autocast(logits.device.type, enabled=False):
        taken: Tensor = adversary(logits, batch.labels).sigmoid()
        return loss + weight * taken.mean()


class _Reference:
    """The images of a training's samples that it is not trained on."""

    def __init__(self, samples: Samples, ids: Sequence[str]) -> None:
        self.ids, self.sample = tuple(ids), samples.sample


class _MinMax(Course):
    """An adversary's steps before each of the network's."""

    def __init__(self, *own: Any, **named: Any) -> None:
        super().__init__(*own, **named)
        _check(**{key: value for key, value in self.own.items() if key != "adversary"})
        ids = tuple(self.own["reference"])
        both = set(ids).intersection(self.samples.ids)
        if not ids or both:
            fault = f"holds {min(both)}, which is trained on" if both else "is empty"
            raise UserError(f"recipe minmax: the reference {fault}; give it other images than those, by their ids")
        self.views = Views(_Reference(self.samples, ids), self.schedule)
        net: Any = self.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number(self.schedule.seed, "adversary") % 2**63)
            self.adversary = OutputNet(net.num_classes)
        self.adversary.to(next(self.model.parameters()).device)
        self.learning = torch.optim.Adam(self.adversary.parameters(), lr=self.own["adversary_lr"])
        self.drawn = 0

    def loss(self, batch: Batch, rng: ImageStreams) -> Tensor:
        """With the adversary as it stands."""
        return self.recipe(self.model, batch, rng=rng, adversary=self.adversary)

    def step(self, batch: Batch, rng: ImageStreams) -> float:
        """Steps of the adversary, then one of the network."""
        for _ in range(self.own["adversary_steps"]):
            others = self._others(len(batch)).to(batch.images.device)
            seen = [(self._answers(one), one.labels) for one in (batch, others)]
            losses = [
                F.binary_cross_entropy_with_logits(found, torch.full_like(found, member))
                for found, member in ((self.adversary(*pair), 1.0 - i) for i, pair in enumerate(seen))
            ]
            self.learning.zero_grad()
            torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
            self.learning.step()
        self.adversary.requires_grad_(False)
        try:
            return super().step(batch, rng)
        finally:
            self.adversary.requires_grad_(True)

    def state(self) -> dict[str, Any]:
        """The adversary, its optimizer, and how often images of the reference were drawn."""
        return {"adversary": self.adversary.state_dict(), "learning": self.learning.state_dict(), "drawn": self.drawn}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with the adversary as it was."""
        if state:
            self.adversary.load_state_dict(state["adversary"])
            self.learning.load_state_dict(state["learning"])
            self.drawn = state["drawn"]

    def _others(self, count: int) -> Batch:
        """Images of the reference, drawn anew, in views like those that are trained on."""
        self.drawn += 1
        rng = generator(self.schedule.seed, "reference", self.drawn)
        rows = torch.randperm(len(self.views), generator=rng)[:count].tolist()
        self.views.epoch = self.epoch
        images, labels, _ = collate([self.views[row] for row in rows])
        ids = tuple(self.views.samples.ids[row] for row in rows)
        return Batch(images.contiguous(memory_format=torch.channels_last), labels, ids)

    @torch.no_grad()
    def _answers(self, batch: Batch) -> Tensor:
        """Logits as an attacker is given them: of the network in eval mode, which then is as it was."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with self.cast:
                logits: Tensor = self.model(batch.images)
            return logits.float()
        finally:
            for module, mode in modes:
                module.training = mode


minmax.course = _MinMax  # type: ignore[attr-defined]


def _check(
    *,
    reference: Any = (),
    weight: Any = 0.4,
    adversary_steps: Any = 1,
    adversary_lr: Any = 1e-3,
    adversary: Any = None,
    class_weights: Any = None,
    **others: Any,
) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    if isinstance(reference, str) or not all(type(name) is str for name in reference):
        raise UserError(f"recipe minmax: reference must be a list of ids, not {reference!r}")
    for key, value in (("weight", weight), ("adversary_lr", adversary_lr)):
        real = not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value < math.inf
        if not real or (value == 0 and key == "adversary_lr"):
            least = "of at least 0" if key == "weight" else "above 0"
            raise UserError(f"recipe minmax: {key} must be a number {least}, not {value!r}")
    if type(adversary_steps) is not int or adversary_steps < 1:
        raise UserError(f"recipe minmax: adversary_steps must be a whole number of at least 1, not {adversary_steps!r}")
    if adversary is not None:
        raise UserError("recipe minmax: the adversary is the training loop's own; leave it out")
    standard.check(**others)  # type: ignore[attr-defined]


minmax.check = _check  # type: ignore[attr-defined]  # of what a spec says, before anything is written
