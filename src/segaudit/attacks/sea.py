"""The segmentation ensemble attack: APGD with three losses, and each image's worst case over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, update_wrapper
from typing import Any

from torch import Tensor

from segaudit.attacks._apgd import Found
from segaudit.attacks.apgd import make_goal, search
from segaudit.types import Segmenter, Streams

LOSSES = ("masked_ce", "balanced_masked_ce", "js")

Members = Callable[[Mapping[str, Any]], list[tuple[str, dict[str, Any]]]]
"""An ensemble's own arguments -> the registered name and the arguments of each attack that it is made of."""


class Ensemble:
    """An attack that is the worst case over others; `members` names them, so that each can be run and kept alone."""

    def __init__(self, attack: Callable[..., Tensor], members: Members) -> None:
        self.attack, self.members = attack, members
        update_wrapper(self, attack)

    def __call__(self, *given: Any, **own: Any) -> Tensor:
        """The attack's images."""
        return self.attack(*given, **own)


def members(own: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """SEA's parts: APGD with each loss and SEA's defaults, changed by `own`, the arguments that SEA is given."""
    shared = {"steps": 300, "radius_reduction": True} | {key: own[key] for key in own if key != "class_pixels"}
    counts = {"class_pixels": own["class_pixels"]} if "class_pixels" in own else {}
    return [("apgd", {"loss": loss, **shared, **(counts if loss.startswith("balanced") else {})}) for loss in LOSSES]


@partial(Ensemble, members=members)
def sea(
    model: Segmenter,
    images: Tensor,
    labels: Tensor,
    *,
    rng: Streams,
    eps: float,
    steps: int = 300,
    norm: str = "linf",
    class_pixels: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """SEA: APGD with masked, balanced masked and Jensen-Shannon losses; each image keeps its worst case.

    steps: of each of the three runs, which use radius reduction and start at the same point. An image keeps the run
    with the fewest pixels right; one that has none right takes no further run. class_pixels: see `apgd`.
    Source: Croce et al. 2024 (SEA).
    """

    def run(rows: Tensor, loss: str) -> Found:
        clean = images[rows]
        goal = make_goal(model, clean, labels[rows], loss=loss, class_pixels=class_pixels)
        return search(goal, clean, rng[rows], eps=eps, steps=steps, norm=norm, radius_reduction=True)

    return Found.best_of((partial(run, loss=loss) for loss in LOSSES), images).images
