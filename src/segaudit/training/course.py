"""How the steps of a training are taken: as usual, or as a recipe has it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from segaudit.rng import ImageStreams
from segaudit.training.schedule import Recipe, Samples, Schedule
from segaudit.types import Batch, UserError


class Course:
    """The usual steps. A recipe whose function has a `course`, a class made from this one, takes its own.

    recipe: with its arguments, which are in `own`, defaults among them. samples: what is trained on. model, optimizer,
    accelerator, cast: as the loop has them; cast is the arithmetic of the forward pass.
    """

    def __init__(
        self,
        recipe: Recipe,
        samples: Samples,
        schedule: Schedule,
        model: nn.Module,
        optimizer: Any,
        accelerator: Any,
        cast: AbstractContextManager[Any],
    ) -> None:
        self.recipe, self.samples, self.schedule, self.epoch = recipe, samples, schedule, 0
        self.model, self.optimizer, self.accelerator, self.cast = model, optimizer, accelerator, cast
        named = inspect.signature(recipe).parameters.values()
        self.own: dict[str, Any] = {p.name: p.default for p in named if p.default is not p.empty}

    @staticmethod
    def of(recipe: Recipe) -> type[Course]:
        """The course of a recipe, which may be a `functools.partial` of one."""
        found: type[Course] = getattr(getattr(recipe, "func", recipe), "course", Course)
        return found

    @property
    def steps(self) -> int:
        """The steps of an epoch."""
        return steps(len(self.samples.ids), self.schedule)

    def rows(self, epoch: int) -> Sequence[list[int]]:
        """Of each step of an epoch the rows of its images in the samples: in random order, none of them twice."""
        order = torch.randperm(len(self.samples.ids), generator=generator(self.schedule.seed, "order", epoch))
        batch = min(self.schedule.batch, len(order))
        return [chunk.tolist() for chunk in torch.split(order, batch) if len(chunk) == batch]

    def loss(self, batch: Batch, rng: ImageStreams) -> Tensor:
        """What a step goes down on."""
        return self.recipe(self.model, batch, rng=rng)

    def step(self, batch: Batch, rng: ImageStreams) -> float:
        """One step; returns its loss. Raises UserError for one that is no number."""
        with self.cast:
            loss = self.loss(batch, rng)
        self.sound(loss)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        self.optimizer.step()
        return loss.item()

    def sound(self, loss: Tensor) -> None:
        """Raise UserError for a loss that is no number."""
        if not loss.isfinite():
            raise UserError(f"training: the loss is {loss.item()} in epoch {self.epoch}; lower lr ({self.schedule.lr})")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the network and its optimizer, to go on from."""
        return {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on in `epoch` from a `state`; from nothing where the training begins, or was begun without a course."""


def steps(images: int, schedule: Schedule) -> int:
    """The steps of an epoch over so many images."""
    return max(1, images // schedule.batch)


def number(*parts: Any) -> int:
    """A whole number below 2**64 from anything that has a `repr`, the same one in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def generator(*parts: Any) -> Generator:
    """A random generator from anything that has a `repr`, the same one in every process."""
    return Generator().manual_seed(number(*parts) % 2**63)
