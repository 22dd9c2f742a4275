"""What a training is given: images, a recipe that turns a batch into a loss, and how long and how fast it goes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from segaudit.registry import suggest
from segaudit.training.augment import augment
from segaudit.training.augment import check as check_views
from segaudit.training.rates import RATES
from segaudit.types import UserError

Recipe = Callable[..., Tensor]
"""`(model, batch, *, rng) -> loss`; its function may have a `course`, by which its steps are taken."""


class Samples(Protocol):
    """Images with masks by id."""

    ids: tuple[str, ...]

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        """Image C x H x W in [0, 1] and labels H x W."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    lr: the peak of AdamW's learning rate. betas: how long it remembers slopes and their squares. lr_schedule: the
    course of the rate, a name in `rates.RATES`. warmup: the share of the training in which it rises to the peak.
    """

    epochs: int = 60
    batch: int = 8
    lr: float = 1e-3
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    lr_schedule: str = "one_cycle"
    warmup: float = 0.1
    clip: float = 5.0
    seed: int = 0
    precision: str = "auto"
    validate_every: int = 5
    workers: int = 0
    augment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.lr_schedule not in RATES:
            near = suggest(str(self.lr_schedule), RATES)
            raise UserError(f"lr_schedule must be one of {', '.join(RATES)}, not {self.lr_schedule!r}{near}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must be two numbers from 0 to below 1, such as [0.5, 0.9], not {list(self.betas)}")
        known = [key for key in inspect.signature(augment).parameters if key not in ("image", "labels", "rng")]
        for key in self.augment:
            if key not in known:
                raise UserError(f"augment has no {key!r}{suggest(str(key), known)}; it has: {', '.join(known)}")
        check_views(self.augment)
        for key, least in (("epochs", 1), ("batch", 1), ("validate_every", 1), ("workers", 0)):
            if type(value := getattr(self, key)) is not int or value < least:
                raise UserError(f"{key} must be a whole number of at least {least}, not {value!r}")
        for key, wanted, sound in (
            ("lr", "a number above 0", 0 < self.lr < math.inf),
            ("weight_decay", "a number of at least 0", 0 <= self.weight_decay < math.inf),
            ("warmup", "a share from 0 to 1", 0 <= self.warmup <= 1),
            ("clip", "a number above 0", self.clip > 0),
        ):
            if not sound:
                raise UserError(f"{key} must be {wanted}, not {getattr(self, key)!r}")
