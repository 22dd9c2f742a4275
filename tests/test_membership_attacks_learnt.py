"""Membership attacks by a network of the attacker's, and what every membership attack there is keeps to."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from inference_kit import world
from segaudit import registry
from segaudit.privacy.attacks.global_loss import global_loss
from segaudit.privacy.attacks.loss_map import losses
from segaudit.privacy.attacks.type1 import softmax, type1
from segaudit.privacy.attacks.type2 import beside
from segaudit.privacy.signals import CLIP
from segaudit.types import VOID

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"width": 4, "epochs": 6, "batch": 10, "lr": 1e-2}
OWN: dict[str, dict[str, Any]] = {
    "type1": SMALL,
    "type2": SMALL,
    "loss_map": SMALL | {"patch": 8, "patches": 3},
    "no_model": {"trees": 4, "repeats": 1, "folds": 3},
}


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["type1", "type2", "loss_map"])
def test_an_attack_network_finds_who_a_network_is_surer_of_and_nothing_where_there_is_nothing(name: str) -> None:
    attack = registry.load("membership", name)
    sure, none = world(1.5), world(0.0, seed=2)
    made = attack(sure.experiment, rng=rng(), **OWN[name])
    assert sure.auc(made) > 0.85
    inside = np.array([own in sure.members for own in sure.experiment.candidates])
    assert made.threshold == 0
    assert ((made.scores > 0) == inside).mean() > 0.9  # after 36 steps alone
    assert 0.3 < none.auc(attack(none.experiment, rng=rng(), **OWN[name] | {"epochs": 2})) < 0.7


@pytest.mark.parametrize("name", ["type1", "type2", "loss_map"])
def test_an_attack_network_does_not_learn_its_few_maps_by_heart(name: str) -> None:
    """With its own numbers it is hardly weaker than the plain loss where that is about all there is."""
    one = world(0.45, "binary", each=60, seed=4)
    made = registry.load("membership", name)(one.experiment, rng=rng())
    assert one.auc(made) > one.auc(global_loss(one.experiment, rng=rng())) - 0.1 > 0.65


@pytest.mark.parametrize("kind", ["segmentation", "binary", "classifier"])
@pytest.mark.parametrize("name", registry.names("membership"))
def test_every_attack_scores_each_candidate_the_same_way_every_time(name: str, kind: str) -> None:
    """Images of several sizes (one label each, of a classifier), two of them without a valid pixel."""
    attack = registry.load("membership", name)
    one = world(1.0, kind, each=8, references=6, population=4, ragged=True)
    own = OWN.get(name, {}) | ({"epochs": 1} if name in ("type1", "type2", "loss_map") else {})
    own |= {"members": one.members} if getattr(attack, "baseline", False) else {}
    handed = {"experiment", "rng", "members"} if getattr(attack, "baseline", False) else {"experiment", "rng"}
    free = [key for key, p in inspect.signature(attack).parameters.items() if p.default is p.empty]
    assert set(free) == handed
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = attack(one.experiment, rng=rng(3), **own)
    assert torch.equal(torch.get_rng_state(), before)
    assert made.scores.shape == (16,)
    assert made.scores.dtype == np.float64
    assert np.isfinite(made.scores).all()
    assert made.threshold is None or isinstance(made.threshold, float)
    assert len(set(made.scores.tolist())) > 2
    again = attack(one.experiment, rng=rng(3), **own)
    np.testing.assert_array_equal(made.scores, again.scores)
    if name not in ("no_model", "type1", "type2"):  # which have something to go by without a mask
        middle = made.threshold if made.threshold is not None else np.median(made.scores[[*range(1, 8), *range(9, 16)]])
        np.testing.assert_allclose(made.scores[[0, 8]], middle)


def test_members_are_not_told_by_their_place_among_the_candidates() -> None:
    """The order of the candidates changes no score of theirs."""
    one = world(1.0, each=8, references=6, population=4)
    turned = tuple(reversed(one.experiment.candidates))
    for name in registry.names("membership"):
        attack = registry.load("membership", name)
        if name == "no_model":  # whose folds are drawn
            continue
        own = OWN.get(name, {}) | ({"epochs": 1} if name in ("type1", "type2", "loss_map") else {})
        there, back = (
            attack(experiment, rng=rng(), **own).scores
            for experiment in (one.experiment, replace(one.experiment, candidates=turned))
        )
        np.testing.assert_allclose(there, back[::-1], atol=1e-5, err_msg=name)


def test_type_one_sees_no_mask() -> None:
    one = world(1.0, each=6)
    made = type1(one.experiment, rng=rng(), **SMALL)
    pictures: Any = one.experiment.samples
    blank = {name: torch.zeros_like(own) for name, own in pictures.labels.items()}
    other = replace(one.experiment, samples=replace(pictures, labels=blank))
    np.testing.assert_array_equal(made.scores, type1(other, rng=rng(), **SMALL).scores)


def test_large_maps_are_averaged_down() -> None:
    one = world(1.0, each=6)
    whole, small, more = (type1(one.experiment, rng=rng(), side=side, **SMALL).scores for side in (128, 4, 14))
    np.testing.assert_array_equal(whole, more)
    assert np.abs(whole - small).max() > 1e-3


def test_the_channels_of_the_mask_stand_in_the_order_of_the_softmax() -> None:
    """A reshape in place of a permute scrambles pixels and classes."""
    made = Generator().manual_seed(0)
    logits, labels = torch.randn(4, 3, 5, generator=made), torch.randint(4, (3, 5), generator=made)
    found = beside(logits, labels)
    assert found.shape == (9, 3, 5)
    torch.testing.assert_close(found[:4], softmax(logits, labels))
    for k in range(4):
        for y in range(3):
            for x in range(5):
                assert float(found[4 + k, y, x]) == float(labels[y, x] == k)


def test_void_is_no_class_of_the_mask_and_has_no_loss() -> None:
    logits = torch.randn(3, 2, 2, generator=Generator().manual_seed(0))
    labels = torch.tensor([[2, VOID], [0, 1]])
    assert beside(logits, labels)[3:, 0, 1].tolist() == [0, 0, 0, 0]
    assert beside(logits, labels)[3:6].sum() == 3
    found = losses(logits, labels)
    assert found[:, 0, 1].tolist() == [0, 0]
    assert found[1].sum() == 3
    assert float(found[0, 0, 0]) == pytest.approx(-float(logits[:, 0, 0].log_softmax(0)[2]) / CLIP, abs=1e-6)
    assert losses(1e6 * logits, labels).max() <= 1
