"""Membership attacks that compare numbers: against scipy and naive loops, and where there is nothing to find."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Generator

from inference_kit import Given, Pictures, world
from segaudit import registry
from segaudit.metrics import roc
from segaudit.privacy.attacks import _evidence
from segaudit.privacy.attacks.global_loss import global_loss
from segaudit.privacy.attacks.label_only import label_only
from segaudit.privacy.attacks.lira import lira
from segaudit.privacy.attacks.no_model import no_model
from segaudit.privacy.attacks.rmia import FINE, rmia
from segaudit.privacy.attacks.statistics import statistics
from segaudit.privacy.experiment import Experiment, Shadow
from segaudit.types import VOID, Floats, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def told(count: int, references: int, *, classes: int = 0, population: int = 0, seed: int = 0) -> Experiment:
    """Networks of which phi, class_phi and log_p are drawn at random; half of the references has each image."""
    made = np.random.default_rng(seed)
    ids = tuple(f"x{i}" for i in range(count))
    extra = tuple(f"z{i}" for i in range(population))

    def network() -> Given:
        phi = {name: made.normal(2, 1.5) for name in (*ids, *extra)}
        by_class = {name: made.normal(1, 2, classes) for name in (*ids, *extra)}
        for i, name in enumerate(ids[:-1]):
            by_class[name][i % max(1, classes) : i % max(1, classes) + 1] = np.nan
        log_p = {name: -made.gamma(2.0, 0.3) for name in (*ids, *extra)}
        return Given(phi=phi, class_phi=by_class, log_p=log_p)

    halves = [made.permutation(references)[: references // 2] for _ in ids]
    shadows = []
    for r in range(references):
        inside = tuple(name for name, half in zip(ids, halves, strict=True) if r in half)
        shadows.append(Shadow(network(), inside, tuple(name for name in ids if name not in inside)))
    nowhere = Pictures({}, {})
    return Experiment(nowhere, max(2, classes), ids, network(), (), tuple(shadows), extra, {name: name for name in ids})


def naive_lira(one: Experiment, name: str, offline: bool, center: str, fixed: bool) -> list[float]:
    """Image by image, class by class, with scipy's densities."""

    def values(ids: str, d: int, inside: bool) -> Floats:
        chosen = [own for own in one.references if (ids in own.inside) == inside]
        return np.array([own.asked.signals((ids,))[name].reshape(-1)[d] for own in chosen])

    depth = one.victim.signals(one.candidates[:1])[name].reshape(1, -1).shape[1]
    middle = np.median if center == "median" else np.mean

    def spread(d: int, inside: bool) -> float:
        squares, free = 0.0, 0
        for ids in one.candidates:
            own = values(ids, d, inside)
            if not np.isnan(own).any():
                squares, free = squares + ((own - own.mean()) ** 2).sum(), free + len(own) - 1
        return math.sqrt(squares / free)

    spreads = {(d, side): spread(d, side) for d in range(depth) for side in (True, False)}
    scores = []
    for ids in one.candidates:
        victim, found = one.victim.signals((ids,))[name].reshape(-1), []
        for d in range(depth):
            if np.isnan(victim[d]):
                continue
            sides = {}
            for side in (True, False):
                own = values(ids, d, side)
                sides[side] = stats.norm(middle(own), spreads[d, side] if fixed else own.std())
            out = sides[False].logcdf(victim[d]) if offline else -sides[False].logpdf(victim[d])
            found.append(out if offline else out + sides[True].logpdf(victim[d]))
        scores.append(float(np.mean(found)))
    return scores


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("center", ["median", "mean"])
@pytest.mark.parametrize("variance", ["own", "fixed"])
@pytest.mark.parametrize("signal", ["phi", "class"])
def test_lira_is_the_ratio_of_scipys_densities(offline: bool, center: str, variance: str, signal: str) -> None:
    one = told(5, 8, classes=3 if signal == "class" else 0)
    made = lira(one, rng=rng(), signal=signal, offline=offline, center=center, variance=variance)
    wanted = naive_lira(one, {"phi": "phi", "class": "class_phi"}[signal], offline, center, variance == "fixed")
    np.testing.assert_allclose(made.scores, wanted, atol=1e-6)
    assert made.threshold == (None if offline else 0.0)


def test_lira_has_one_variance_for_all_where_references_are_few() -> None:
    few, many = told(4, 8), told(3, 64)
    for one, same in ((few, "fixed"), (many, "own")):
        other = {"fixed": "own", "own": "fixed"}[same]
        auto = lira(one, rng=rng()).scores
        np.testing.assert_array_equal(auto, lira(one, rng=rng(), variance=same).scores)
        assert np.abs(auto - lira(one, rng=rng(), variance=other).scores).min() > 0


@pytest.mark.parametrize("offline", [False, True])
def test_rmia_is_a_triple_loop(offline: bool) -> None:
    one = told(6, 4, population=9)
    a, gamma = 0.4, 1.1
    scores = []
    for x in one.candidates:
        won = 0
        for z in one.population:
            p: dict[str, dict[bool, list[float]]] = {x: {True: [], False: []}, z: {True: [], False: []}}
            for own in one.references:
                for name in (x, z):
                    p[name][name in own.inside].append(math.exp(own.asked.signals((name,))["log_p"][0]))
            ratio = {}
            for name in (x, z):
                without = float(np.mean(p[name][False]))
                if offline:
                    expected = ((1 + a) * without + 1 - a) / 2
                else:
                    expected = (without + float(np.mean(p[name][True]))) / 2 if name == x else without
                ratio[name] = math.exp(one.victim.signals((name,))["log_p"][0]) / expected
            won += ratio[x] / ratio[z] > gamma
        scores.append(won / len(one.population))
    made = rmia(one, rng=rng(), offline=offline, a=a, gamma=gamma)
    np.testing.assert_allclose(made.scores, scores, rtol=0, atol=2 * FINE)
    assert 0 < min(s for s in scores if s) <= max(scores) <= 1
    assert len(set(scores)) > 2
    assert made.threshold is None


def test_rmia_does_not_tie_the_best_scores_where_the_population_is_small() -> None:
    one = told(40, 6, population=2)
    wide = replace(one, population=tuple(f"x{i}" for i in range(40)))  # a z between any two x
    coarse, order = rmia(one, rng=rng(), offline=True).scores, rmia(wide, rng=rng(), offline=True).scores
    assert len(set(coarse.round(6).tolist())) <= 3
    assert len(set(coarse.tolist())) == 40
    ranks = np.argsort(coarse)
    assert (np.diff(order.round(6)[ranks]) >= 0).all()


def test_the_loss_threshold_is_the_shadows_mean_training_loss_one_for_all_images_and_classes() -> None:
    own = {"a": 0.1, "b": 0.5, "c": 0.9, "d": math.nan, "e": 3.0, "v": 0.5, "w": 0.3, "u": 0.6, "n": math.nan}
    net = Given(loss=own)
    shadow = Shadow(net, ("a", "b", "c", "d"), ("e", "w"))
    one = Experiment(Pictures({}, {}), 2, ("v", "w", "u", "n"), net, (shadow,), (), (), {})
    made = global_loss(one, rng=rng())
    assert isinstance(made.threshold, float)
    assert made.threshold == pytest.approx(-0.5)
    np.testing.assert_array_equal(made.scores[:3], [-0.5, -0.3, -0.6])
    assert (made.scores > made.threshold).tolist() == [True, True, False, False]  # at most the mean is a member
    assert made.scores[3] == made.threshold
    ranked = global_loss(replace(one, shadows=()), rng=rng())
    assert ranked.threshold is None
    np.testing.assert_array_equal(ranked.scores, [-0.5, -0.3, -0.6, -0.5])  # who has no loss has the median


def test_label_only_sees_the_predicted_classes_alone() -> None:
    one = world(2.0, each=20)
    for signal in ("both", "dice", "boundary"):
        made = label_only(one.experiment, rng=rng(), signal=signal)
        victim, shadow = one.experiment.victim, one.experiment.shadows[0]
        louder = replace(
            one.experiment,
            victim=victim.scaled(7.0),  # type: ignore[attr-defined]
            shadows=(replace(shadow, asked=shadow.asked.scaled(0.2)),),  # type: ignore[attr-defined]
        )
        again = label_only(louder, rng=rng(), signal=signal)
        np.testing.assert_array_equal(made.scores, again.scores)
        assert made.threshold == again.threshold
        assert one.auc(made) > 0.8
    alone = label_only(replace(one.experiment, shadows=()), rng=rng())
    assert alone.threshold is None
    np.testing.assert_array_equal(alone.scores[1:20], label_only(one.experiment, rng=rng()).scores[1:20])


def test_the_best_cut_parts_two_kinds_as_a_loop_over_thresholds_does() -> None:
    made = np.random.default_rng(0)
    for _ in range(20):
        values = made.integers(0, 12, 25).astype(float)
        member = made.random(25) < 0.5
        member[:2] = [True, False]

        def worth(cut: float, values: Floats = values, member: Any = member) -> float:
            return float((values[member] > cut).mean() - (values[~member] > cut).mean())

        cut = _evidence.best_cut(values, member)
        assert worth(cut) == pytest.approx(max(worth(own) for own in np.arange(-1, 13, 0.5)))


def test_statistics_learn_from_the_shadows_and_find_nothing_where_there_is_nothing() -> None:
    sure, none = world(1.5), world(0.0, seed=2)
    inside = np.array([name in sure.members for name in sure.experiment.candidates])
    for learner in ("logistic", "boosting"):
        made = statistics(sure.experiment, rng=rng(), learner=learner)
        assert sure.auc(made) > 0.85
        assert made.threshold == 0
        assert ((made.scores > 0) == inside).mean() > 0.7
        assert 0.3 < none.auc(statistics(none.experiment, rng=rng(), learner=learner)) < 0.7


def test_references_find_members_and_nothing_where_there_is_nothing() -> None:
    sure, none = (world(gap, each=24, references=8, population=20, seed=2) for gap in (0.5, 0.0))
    plain = sure.auc(global_loss(sure.experiment, rng=rng()))
    for attack in (lira, rmia):
        assert sure.auc(attack(sure.experiment, rng=rng())) > max(0.75, plain)  # some images are easier than others
        assert sure.auc(attack(sure.experiment, rng=rng(), offline=True)) > 0.75
        for offline in (False, True):
            assert 0.3 < none.auc(attack(none.experiment, rng=rng(), offline=offline)) < 0.7
    for signal in ("dice", "band", "class"):
        assert sure.auc(lira(sure.experiment, rng=rng(), signal=signal)) > 0.75


def _videos(units: int, each: int, seed: int) -> tuple[Pictures, dict[str, str], list[str]]:
    """Images of which those of a unit are nearly the same."""
    made = Generator().manual_seed(seed)
    images, labels, unit = {}, {}, {}
    for u in range(units):
        colours = torch.rand(3, 1, 1, generator=made) + 0.3 * torch.rand(3, 8, 9, generator=made)
        mask = torch.randint(2, (8, 9), generator=made)
        for i in range(each):
            name = f"v{u:02d}-{i}"
            images[name] = (colours / 2 + 0.02 * torch.rand(3, 8, 9, generator=made)).clamp(0, 1)
            labels[name], unit[name] = mask, f"v{u:02d}"
    return Pictures(images, labels), unit, list(images)


def test_the_baseline_finds_nothing_in_a_fair_split_and_much_where_twins_are_on_both_sides_or_content_decides() -> None:
    pictures, unit, ids = _videos(28, 3, seed=0)
    fair, seen = list[float](), list[float]()
    for seed in range(2):
        chosen = torch.randperm(28, generator=rng(seed)).tolist()[:14]
        members = [name for name in ids if int(unit[name][1:3]) in chosen]
        inside = np.array([name in members for name in ids])
        one = Experiment(pictures, 2, tuple(ids), Given(), (), (), (), unit)
        for units, found in ((unit, fair), ({name: name for name in ids}, seen)):
            made = no_model(replace(one, units=units), members=members, rng=rng(seed), trees=20, repeats=1)
            found.append(roc.auc(made.scores[~inside], made.scores[inside]))
            assert made.threshold == 0.5
    assert 0.3 < np.mean(fair) < 0.7
    assert min(seen) > 0.9
    bright = sorted(ids, key=lambda name: float(pictures.images[f"{unit[name]}-0"].mean()))
    inside = np.array([name in bright[42:] for name in ids])
    made = no_model(one, members=bright[42:], rng=rng(), trees=20, repeats=1)
    assert roc.auc(made.scores[~inside], made.scores[inside]) > 0.8
    assert no_model.baseline is True  # type: ignore[attr-defined]


def test_the_baseline_sees_the_masks() -> None:
    made = Generator().manual_seed(3)
    ids = [f"{i:02d}" for i in range(60)]
    labels = {name: (torch.rand(8, 8, generator=made) < (0.2 if int(name) < 30 else 0.3)).long() for name in ids}
    images = {name: torch.rand(1, 8, 8, generator=made) for name in ids}
    one = Experiment(Pictures(images, labels), 2, tuple(ids), Given(), (), (), (), {name: name for name in ids})
    scores = no_model(one, members=set(ids[:30]), rng=rng(), trees=20, repeats=1).scores
    assert roc.auc(scores[30:], scores[:30]) > 0.8


def test_what_an_attack_lacks_is_said_in_one_line() -> None:
    bare = world(1.0, each=4, shadows=0).experiment
    for name in ("statistics", "type1", "type2", "loss_map"):
        with pytest.raises(UserError, match=f"'{name}' learns from networks of the attacker's own, and there is none"):
            registry.load("membership", name)(bare, rng=rng())
    with pytest.raises(UserError, match=r"'lira' needs for each image 2 references trained on and not .*`references`"):
        lira(bare, rng=rng())
    with pytest.raises(UserError, match=r"'lira' .* 2 references not trained on it, and 8 of 8 .* with 1 references"):
        lira(world(1.0, each=4, references=1).experiment, rng=rng(), offline=True)
    with pytest.raises(UserError, match=r"'rmia' needs images that no network was trained on.*`train_size`"):
        rmia(bare, rng=rng())
    with pytest.raises(UserError, match="'rmia' needs for each image 2 references"):
        rmia(world(1.0, each=4, population=3).experiment, rng=rng())
    single = replace(bare, units={name: name[:1] for name in bare.candidates})
    with pytest.raises(UserError, match=r"two units of members and two of others.*1 and 1"):
        no_model(single, members=bare.candidates[:4], rng=rng())


@pytest.mark.parametrize("name", ["global_loss", "statistics", "label_only"])
@pytest.mark.parametrize("side", ["own", "other"])
def test_shadows_whose_masks_are_void_are_refused_in_one_line(name: str, side: str) -> None:
    one = world(1.0, each=4)
    pictures: Any = one.experiment.samples
    for ids, labels in pictures.labels.items():
        if ids.startswith(side):
            labels.fill_(VOID)
    with pytest.raises(UserError, match=f"'{name}' learns from the shadows' images, .* none has a valid pixel"):
        registry.load("membership", name)(one.experiment, rng=rng())


@pytest.mark.parametrize(
    ("attack", "own", "line"),
    [
        ("lira", {"signal": "phy"}, r"signal must be phi or dice or band or class, not 'phy' \(did you mean 'phi'"),
        ("lira", {"offline": "yes"}, "offline must be true or false"),
        ("lira", {"center": "mode"}, "center must be median or mean"),
        ("rmia", {"a": 1.5}, "a must be a number from 0 to 1, not 1.5"),
        ("rmia", {"gamma": 0}, "gamma must be a number above 0, not 0"),
        ("label_only", {"signal": "loss"}, "signal must be both or dice or boundary"),
        ("statistics", {"learner": "svm"}, "learner must be logistic or boosting"),
        ("no_model", {"folds": 1}, "folds must be a whole number of at least 2"),
        ("type1", {"lr": 0}, "lr must be a number above 0"),
        ("type2", {"batch": 1}, "batch must be a whole number of at least 2"),
        ("loss_map", {"patch": 0.5}, "patch must be a whole number of at least 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_trained(
    attack: str, own: dict[str, Any], line: str
) -> None:
    function = registry.load("membership", attack)
    with pytest.raises(UserError, match=f"^membership attack '{attack}': {line}"):
        function.check(**own)  # type: ignore[attr-defined]
    function.check()  # type: ignore[attr-defined]
