"""Networks that would let an attack fail in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets import Painter
from segaudit import registry
from segaudit.models.wrap import Wrapped
from segaudit.rng import ImageStreams
from segaudit.types import Batch, Segmenter


class Rooted(Segmenter):
    """Finite logits whose gradient is NaN: 0 times the root's infinite slope at 0."""

    class_names = ("a", "b")

    def forward(self, images: Tensor) -> Tensor:
        zero = (images - images).abs().sqrt() * 0
        return (images + zero)[:, :2]


GRADIENT = [name for name in registry.names("attack") if not registry.gradient_free(name)]


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_nan_gradient_is_not_taken_for_robustness(name: str, norm: str) -> None:
    images, labels = torch.rand(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)
    own: dict[str, Any] = {"norm": norm, "eps": 0.03}
    own = {key: value for key, value in own.items() if registry.accepts("attack", name, key)}
    attack, ids = registry.load("attack", name), ("a", "b")
    if registry.accepts("attack", name, "detector"):
        own["detector"] = lambda model, images: images.mean((1, 2, 3))
    if registry.accepts("attack", name, "generator"):
        own["generator"] = Painter(3, 4, 5)
    if fit := getattr(attack, "fit", None):
        own["fitted"] = fit(Rooted(), [Batch(images, labels, ids)], rng=ImageStreams(0, ids), **own)
    made = attack(Rooted(), images, labels, rng=ImageStreams(0, ids), **own)
    assert made.isnan().any()  # which the audit refuses, naming attack and model


def test_fgsm_ii_is_not_led_to_a_class_without_an_output() -> None:
    torch.manual_seed(0)
    names = ("a", "b", "c", "never")
    gapped = Wrapped(nn.Conv2d(3, 3, 3, padding=1), names, outputs=3, class_map={0: 0, 1: 1, 2: 2})
    plain = Wrapped(gapped.net, names[:3])
    images, labels = torch.rand(2, 3, 6, 7), torch.zeros(2, 6, 7, dtype=torch.int64)
    made = [
        registry.load("attack", "fgsm_ll")(net, images, labels, rng=ImageStreams(0, ("a", "b")), eps=0.03)
        for net in (gapped, plain)
    ]
    torch.testing.assert_close(made[0], made[1])
