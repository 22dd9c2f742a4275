"""Membership experiments made up for the report's tests: attacks of a wanted AUC, which is also what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from report_kit import pair, run
from segaudit.types import Inference, Privacy, Results, Victim

IMAGES = 200
"""Members, and as many others."""


def inference(
    found: float,
    attack: str = "lira",
    *,
    model: str = "unet",
    defense: str = "none",
    poison: str = "none",
    threat: str = "none",
    images: int = IMAGES,
    group: int = 1,
    threshold: float | None = None,
) -> Inference:
    """This share of the members is above all others, the rest below all: the AUC and the hits at any rate are it.

    group: so many images are a unit.
    """
    inside = np.where(np.arange(images) < round(found * images), 2.0, -1.0)
    scores = np.concatenate([inside, np.arange(images) / images])
    member = np.arange(2 * images) < images
    ids = tuple(f"{'in' if i < images else 'out'}{i % images:04}" for i in range(2 * images))
    units = tuple(f"{name[:-4]}{int(name[-4:]) // group}" for name in ids)
    target = np.stack([np.full(2 * images, 5), np.arange(2 * images) % 2], 1)
    return Inference(
        model, defense, poison, threat, attack, ids, member, scores, threshold, units, target, seconds=1.5
    )  # fmt: skip


def chance(attack: str = "no_model", images: int = IMAGES, **other: Any) -> Inference:
    """An attack that finds nothing: members and others score the same."""
    made = inference(0.5, attack, images=images, **{"model": ""} | other)
    return replace(made, scores=np.tile(np.arange(images) / images, 2))


def victim(
    defense: str = "none",
    *,
    model: str = "unet",
    poison: str = "none",
    inside: float = 0.9,
    outside: float = 0.6,
    facts: Mapping[str, float] | None = None,
    triggered: Mapping[str, float] | None = None,
) -> Victim:
    """A victim of these mIoUs."""
    return Victim(model, defense, poison, pair(inside, 50), pair(outside, 50), facts or {}, triggered or {})


def experiment(
    victims: Sequence[Victim], inferences: Sequence[Inference], cells: Sequence[Any] = (), **other: Any
) -> Results:
    """A run of a membership experiment."""
    split = {"unit": "image", "members": IMAGES, "others": IMAGES, "shadows": 1, "references": 16}
    split |= other.pop("split", {})
    return run(cells, privacy=Privacy(victims, inferences, split), **other)


def usual(**other: Any) -> Results:
    """A network that leaks, one behind DP that tells nothing, one behind argmax that falls to who knows of it."""
    return experiment(
        [
            victim(),
            victim("dp", inside=0.5, outside=0.5, facts={"seconds": 9.0, "epsilon": 8.5, "delta": 0.005}),
            victim("argmax", outside=0.6),
        ],
        [
            chance(),
            inference(0.9, "global_loss", threshold=1.5),
            inference(0.95),
            chance("global_loss", model="unet", defense="dp", threat="oblivious"),
            chance("lira", model="unet", defense="dp", threat="adaptive"),
            inference(0.6, defense="argmax", threat="oblivious"),
            inference(0.94, defense="argmax", threat="adaptive"),
        ],
        **other,
    )
