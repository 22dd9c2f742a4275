"""Guards of resizers, the attacks that know of them, detectors, and what an audit makes of them all."""

from __future__ import annotations

import math
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from audit_kit import CLASSES, audit, content, save_spec, small, write_net, write_pictures
from segaudit import cli, registry
from segaudit.attacks._resize import LIBRARIES, Resizer, matrix, resizers
from segaudit.attacks._sampled import Sampled, Windows
from segaudit.attacks.guarded_scaling import _apart, _halves, _wanted, median_scaling, random_scaling
from segaudit.attacks.image_scaling import image_scaling
from segaudit.audit import build, hidden
from segaudit.audit.cells.hiding import SAFE, attack_pair, measured
from segaudit.audit.keys import Contents, code_digest
from segaudit.audit.parts import Tuned
from segaudit.audit.plan import plan
from segaudit.audit.resizing import Scaling, adaptive
from segaudit.audit.scaling import scale_attack
from segaudit.audit.spec import RunSpec
from segaudit.data.scenes import scenes
from segaudit.defenses.scaling_detectors import down_up_mse, down_up_ssim, spectrum_energy, spectrum_points
from segaudit.defenses.scaling_guards import area, median, none, random
from segaudit.metrics.roc import auc, tpr_at
from segaudit.report.page import page
from segaudit.report.scaling import attacks
from segaudit.report.tables import table
from segaudit.rng import ImageStreams
from segaudit.types import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

try:
    import cv2
except ImportError:
    cv2 = None
WEAK = [
    resizer
    for library in LIBRARIES
    if library != "opencv" or cv2
    for resizer in resizers(library)
    if resizer.method.startswith("nearest") or (library != "pil" and resizer.method == "bilinear")
]
"""Those that look at a few pixels only."""
each = pytest.mark.parametrize("resizer", WEAK, ids=lambda r: f"{r.library}-{r.method}")
Picture = NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pictures(height: int = 128, width: int = 160, factor: int = 4, first: int = 0) -> tuple[Picture, Picture]:
    """A scene, and another one that many times smaller."""
    data = scenes(split="test", images=first + 2, size=(height, width))
    source, other = (data.read(name)[0] for name in data.ids[first : first + 2])
    return source, (SAFE(other, (height // factor, width // factor)) * 255).round().astype(np.uint8)


def streams(name: str = "one", seed: int = 0) -> ImageStreams:
    return ImageStreams(seed, [name], "guard")


def reads(resizer: Resizer, height: int, width: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixels a resizer looks at: those whose change it shows."""
    rows, columns = matrix(resizer, height, size[0]).numpy(), matrix(resizer, width, size[1]).numpy()
    return np.outer((rows != 0).any(0), (columns != 0).any(0))


def window(read: NDArray[np.bool_], y: int, x: int, up: int, side: int) -> list[tuple[int, int]]:
    """The places around one that are not read, one by one."""
    height, width = read.shape
    around = product(range(y - up, y + up + 1), range(x - side, x + side + 1))
    return [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width and not read[v, u]]


@each
@pytest.mark.parametrize(("sizes", "reach"), [((24, 32, 6, 8), 1.0), ((29, 21, 6, 5), 0.5)])
def test_the_median_guard_is_a_loop_over_what_the_resizer_reads(
    resizer: Resizer, sizes: tuple[int, int, int, int], reach: float
) -> None:
    height, width, *small_size = sizes
    size = small_size[0], small_size[1]
    picture = noise(height, width)
    up, side = (max(1, math.floor(reach * a / b)) for a, b in ((height, size[0]), (width, size[1])))
    read, expected = reads(resizer, height, width, size), picture.copy()
    for y, x in zip(*np.nonzero(read), strict=True):
        values = np.array([picture[at] for at in window(read, y, x, up, side)])
        expected[y, x] = np.sort(values, axis=0)[(len(values) - 1) // 2]
    guard = median(resizer, reach=reach)
    np.testing.assert_array_equal(guard.filtered(picture, size), expected)
    np.testing.assert_array_equal(guard(picture, size), resizer(expected, size))
    assert (expected != picture).any(2).sum() > 0.9 * read.sum()


@each
def test_the_random_guard_picks_from_the_same_windows_by_the_pictures_own_stream(resizer: Resizer) -> None:
    picture, size = noise(24, 32), (6, 8)
    read = reads(resizer, 24, 32, size)
    guard = random(resizer, rng=streams())
    first = guard.filtered(picture, size)
    np.testing.assert_array_equal(first[~read], picture[~read])
    for y, x in zip(*np.nonzero(read), strict=True):
        assert tuple(first[y, x]) in {tuple(picture[at]) for at in window(read, y, x, 4, 4)}
    np.testing.assert_array_equal(random(resizer, rng=streams()).filtered(picture, size), first)
    for other in (
        guard.filtered(picture, size),  # drawn anew
        random(resizer, rng=streams("two")).filtered(picture, size),
        random(resizer, rng=streams(seed=1)).filtered(picture, size),
    ):
        assert (other != first).any(2).sum() > 0.8 * read.sum()


def test_the_random_guard_draws_every_pixel_of_a_window_as_often() -> None:
    picture = np.arange(81, dtype=np.uint8).reshape(9, 9, 1)
    guard, found = random(Resizer("torch", "nearest"), rng=streams(), reach=0.12), np.zeros(81)
    for _ in range(800):
        found[int(guard.filtered(picture, (1, 1))[0, 0, 0])] += 1
    assert set(np.nonzero(found)[0]) == {1, 9, 10}  # the neighbours of the corner, which is what is read
    assert found[[1, 9, 10]].min() > 220


def test_where_all_is_read_all_counts() -> None:
    resizer, picture = Resizer("pil", "bilinear"), noise(12, 16)
    made = median(resizer, reach=0.4).filtered(picture, (3, 4))
    for y, x in product(range(12), range(16)):
        around = picture[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].reshape(-1, 3)
        np.testing.assert_array_equal(made[y, x], np.sort(around, axis=0)[(len(around) - 1) // 2])


@each
def test_the_area_guard_is_the_librarys_area_method(resizer: Resizer) -> None:
    picture = noise(24, 32)
    np.testing.assert_array_equal(area(resizer)(picture, (6, 8)), Resizer(resizer.library, "area")(picture, (6, 8)))
    mean = picture.reshape(6, 4, 8, 4, 3).mean((1, 3)) / 255
    assert np.abs(area(resizer)(picture, (6, 8)) - mean).max() <= 1 / 255
    assert none(resizer) is resizer


@each
def test_filters_of_the_read_pixels_undo_the_attack_that_does_not_know_of_them(resizer: Resizer) -> None:
    """It changes nothing but what the filters replace, so that they show exactly what they show of the source."""
    source, target = pictures()
    size = target.shape[:2]
    one = attack_pair(source, target, resizer)
    assert one.linf <= 2 / 255 + 1e-6
    assert (one.picture != source).mean() > 0.01
    for make in (median, lambda own: random(own, rng=streams())):
        np.testing.assert_array_equal(make(resizer)(one.picture, size), make(resizer)(source, size))
    seen, own = area(resizer)(one.picture, size), area(resizer)(source, size)
    assert np.abs(seen - own).mean() < 0.35 * np.abs(seen - target / 255).mean()


@pytest.mark.parametrize("resizer", [Resizer("pil", "nearest"), Resizer("torch", "bilinear")])
@pytest.mark.parametrize("name", ["area", "median", "random"])
def test_the_attack_that_knows_of_a_guard_wins_and_pays_for_it(resizer: Resizer, name: str) -> None:
    source, target = pictures()
    size = target.shape[:2]
    make = registry.load("guard", name)

    def guard() -> Any:
        return make(resizer, rng=streams()) if name == "random" else make(resizer)

    plain = attack_pair(source, target, resizer)
    blind = measured(source, target, plain.picture, guard())
    known = attack_pair(source, target, guard(), attack=adaptive(Tuned(name=name)))
    far = np.abs(guard()(source, size) - target / 255).mean()
    assert np.abs(blind.small - target / 255).mean() > 0.6 * far
    assert np.abs(known.small - target / 255).mean() < 0.35 * far
    assert known.change > 1.25 * plain.change


def test_the_attack_on_the_area_guard_reaches_its_goal() -> None:
    source, target = pictures()
    guarded = area(Resizer("torch", "nearest"))
    known = attack_pair(source, target, guarded, attack=adaptive(Tuned(name="area")))
    assert known.linf <= 2 / 255 + 1e-6


def test_no_smaller_change_of_one_window_moves_its_median_into_the_band() -> None:
    rng = np.random.default_rng(0)
    for count, low, high in product((4, 5, 6), (40, 120), (140, 220)):
        values = rng.integers(0, 256, count + 2).astype(np.int16)
        counted = np.array([True] * count + [False] * 2)
        window, one = values.reshape(1, 1, -1, 1), counted.reshape(1, 1, -1)
        ends = (np.full((1, 1, 1), end, np.int16) for end in (low, high))
        made = _halves(window, one, *ends)[0, 0, :, 0]
        np.testing.assert_array_equal(made[count:], values[count:])
        middle = np.sort(made[:count])[(count - 1) // 2]
        assert low <= middle <= high
        moved = np.clip(values[:count], low, high)
        costs = []
        for many in range(count + 1):
            for chosen in combinations(range(count), many):
                tried = values[:count].astype(int)
                tried[list(chosen)] = moved[list(chosen)]
                if low <= np.sort(tried)[(count - 1) // 2] <= high:
                    costs.append(((tried - values[:count]) ** 2).sum())
        assert ((made[:count].astype(int) - values[:count]) ** 2).sum() == min(costs)


def test_windows_of_a_group_share_no_pixel_and_all_are_in_one() -> None:
    places = np.array([0, 1, 4, 5, 9, 10, 13, 17])
    groups = _apart(places, 5)
    assert sorted(np.concatenate(groups).tolist()) == list(range(8))
    assert all((np.diff(places[group]) >= 5).all() for group in groups)
    assert len(groups) == 3


def test_the_median_attack_leaves_a_picture_alone_that_is_already_there() -> None:
    source, resizer = noise(24, 32), median(Resizer("torch", "nearest"))
    target = np.rint(255 * resizer(source, (6, 8))).astype(np.uint8)
    np.testing.assert_array_equal(median_scaling(source, target, resizer), source)


def test_more_sweeps_of_the_median_attack_do_not_end_farther_off() -> None:
    source, target = pictures()
    resizer = median(Resizer("torch", "nearest"))
    off = [
        ((resizer(median_scaling(source, target, resizer, steps=steps), target.shape[:2]) - target / 255) ** 2).sum()
        for steps in (1, 2, 4)
    ]
    assert off == sorted(off, reverse=True)


@pytest.mark.parametrize("share", [0.3, 0.75, 1.0])
def test_the_random_attack_is_where_the_expected_error_and_the_change_are_balanced(share: float) -> None:
    """Pixel by pixel: sum over windows of (x - wanted)^2 / n + hold (x - source)^2 is least."""
    source, target, inner = noise(13, 17), noise(4, 5, seed=1), Resizer("torch", "nearest")
    read = reads(inner, 13, 17, (4, 5))
    wanted = {tuple(at): target[i // 5, i % 5] for i, at in enumerate(np.argwhere(read))}
    weight, pull = np.zeros((13, 17)), np.zeros((13, 17, 3))
    for (y, x), value in wanted.items():
        around = window(read, y, x, 3, 3)
        for at in around:
            weight[at] += 1 / len(around)
            pull[at] += value / len(around)
    hold = weight[weight > 0].mean() * (1 - share) / share
    expected = source.astype(float)
    for at in zip(*np.nonzero(weight), strict=True):
        expected[at] = (pull[at] + hold * source[at]) / (weight[at] + hold)
    made = random_scaling(source, target, random(inner, rng=streams()), share=share)
    np.testing.assert_allclose(made, expected, rtol=0, atol=0.5 + 1e-9)
    np.testing.assert_array_equal(made[read], source[read])


@pytest.mark.parametrize("resizer", [Resizer("torch", "nearest"), Resizer("torch", "bilinear")])
def test_what_is_wanted_of_the_read_pixels_makes_the_target(resizer: Resizer) -> None:
    source, target = noise(32, 40), noise(8, 10, seed=1)
    around = Windows(resizer, (32, 40), (8, 10), 1.0)
    made = source.copy()
    made[np.ix_(around.rows, around.columns)] = _wanted(source, target, resizer)
    assert np.abs(resizer(made, (8, 10)) - target / 255).max() < 1e-6


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (
            lambda s, t, r: image_scaling(s, t, median(r)),
            r"^image_scaling is made for a library's resizer alone, not S",
        ),
        (lambda s, t, r: median_scaling(s, t, r), r"^median_scaling is made for a resizer behind a filter .*'nearest'"),
        (lambda s, t, r: random_scaling(s, t, r), r"^random_scaling is made for a resizer behind a filter"),
        (lambda s, t, r: median_scaling(s, t, median(r), steps=0), r"^steps must be a whole number"),
        (lambda s, t, r: median_scaling(t, s, median(r)), r"^target must be no larger"),
        (lambda s, t, r: random_scaling(s, t, median(r), share=0), r"^share must be a number above 0 and at most 1"),
        (lambda s, t, r: median(r, reach=0), r"^guard 'median': reach must be a number above 0"),
        (lambda s, t, r: random(r, rng=streams(), reach="2"), r"^guard 'random': reach must be a number above 0"),
        (lambda s, t, r: spectrum_points([s], r, (4, 4), level=-1), r"^scaling_detector 'spectrum_points': level must"),
    ],
)
def test_wrong_arguments_are_one_line(ask: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ask(noise(16, 16), noise(4, 4), Resizer("torch", "nearest"))


DETECTORS = {
    "down_up_mse": down_up_mse,
    "down_up_ssim": down_up_ssim,
    "spectrum_points": spectrum_points,
    "spectrum_energy": spectrum_energy,
}


@pytest.fixture(scope="module")
def strong() -> list[tuple[Picture, Picture]]:
    """Scenes, and the same with another hidden in each for torch's nearest."""
    resizer, made = Resizer("torch", "nearest"), []
    data = scenes(split="test", images=9, size=(128, 160))
    read = [data.read(name)[0] for name in data.ids]
    for source, other in zip(read, [*read[1:], read[0]], strict=True):
        target = (SAFE(other, (32, 40)) * 255).round().astype(np.uint8)
        made.append((source, image_scaling(source, target, resizer)))
    return made


@pytest.mark.parametrize("name", list(DETECTORS))
def test_detectors_tell_strong_attacks_and_nothing_from_nothing(
    name: str, strong: list[tuple[Picture, Picture]]
) -> None:
    before, after = (list(pictures) for pictures in zip(*strong, strict=True))
    resizer, size = Resizer("torch", "nearest"), (32, 40)
    clean, attacked = (DETECTORS[name](some, resizer, size) for some in (before, after))
    assert clean.shape == attacked.shape == (9,)
    assert auc(clean, attacked) > 0.95
    assert tpr_at(clean, attacked, 0.01) > 0.7
    assert auc(clean, clean) == 0.5
    np.testing.assert_array_equal(DETECTORS[name](before[2:3], resizer, size), clean[2:3])  # each for itself


def test_down_and_up_is_the_difference_by_hand(strong: list[tuple[Picture, Picture]]) -> None:
    picture = strong[0][1]
    kept = picture[::4, ::4].repeat(4, 0).repeat(4, 1)
    resizer = Resizer("torch", "nearest")
    assert down_up_mse([picture], resizer, (32, 40))[0] == pytest.approx(
        np.mean((picture / 255 - kept / 255) ** 2), rel=1e-6
    )
    flat = np.full((24, 32, 3), 77, np.uint8)
    assert down_up_mse([flat], resizer, (6, 8))[0] == pytest.approx(0, abs=1e-12)
    assert down_up_ssim([flat], resizer, (6, 8))[0] == pytest.approx(0, abs=1e-9)


def test_the_spectrum_of_a_sampling_has_the_points_that_it_must() -> None:
    """A smooth picture has one; a grid of dots of period 7 repeats it at every multiple of its frequency."""
    y, _ = np.mgrid[:63, :91]
    smooth = (128 + 60 * np.cos(2 * np.pi * y / 63)).astype(np.uint8)[:, :, None]
    dots = smooth.copy()
    dots[::7, ::7] = 0
    resizer = Resizer("torch", "nearest")
    assert spectrum_points([smooth], resizer, (9, 13))[0] == 1
    assert spectrum_points([dots], resizer, (9, 13))[0] == 49
    energy = spectrum_energy([smooth, dots], resizer, (9, 13))
    assert energy[1] > energy[0] + 10


def guards_on(folder: Path, **over: Any) -> dict[str, Any]:
    """A spec with a scaling block on pictures four times as large as the net sees them."""
    if not (folder / "images").exists():
        write_pictures(folder, 3, (48, 64))
        write_net(folder)
    data = {"name": "folder", "root": str(folder), "classes": CLASSES, "size": [12, 16]}
    block = {"library": "torch", "methods": ["nearest"], "guards": ["none", "area", "median", "random"]}
    return content(folder, data=data, attacks=["fgsm"], eps=["4/255"], scaling=block | over)


def test_an_audit_shows_that_a_guard_raises_the_cost_and_is_not_safe(tmp_path: Path) -> None:
    given = guards_on(tmp_path, detectors=["down_up_mse"])
    given["data"]["size"] = [48, 64]  # their own: many a window lies in one block of them
    spec = RunSpec.model_validate(given)
    assert spec.scaling is not None
    data = build.dataset(spec.data)
    net = build.model(spec.models[0], data.class_names)
    told: list[tuple[int, int]] = []
    rows = scale_attack(
        data,
        {"net": net},
        [Resizer("torch", "nearest")],
        tries=spec.scaling.tries(),
        detectors=spec.scaling.detectors,
        factor=4,
        tell=lambda *at: told.append(at),
    )
    assert told[-1] == (21, 21)
    by = {(row.guard, row.threat): row for row in rows}
    assert list(by) == [("none", "white-box")] + [
        (guard, threat) for guard in ("area", "median", "random") for threat in ("oblivious", "adaptive")
    ]
    bare = by["none", "white-box"]
    assert bare.target > 0.95 * bare.goal > 0.75
    assert bare.before == pytest.approx(bare.clean, abs=0.1)
    for guard in ("area", "median", "random"):
        blind, known = by[guard, "oblivious"], by[guard, "adaptive"]
        assert blind.change == bare.change
        assert blind.target < 0.5 * bare.target, guard
        assert blind.after > 0.8 * bare.clean, guard
        assert blind.before == known.before > 0.8 * bare.clean, guard
        assert known.target > blind.target + 0.2, guard
        assert known.after < blind.after - 0.2, guard
        assert known.change > 1.5 * bare.change, guard
        assert 0 <= known.detection["down_up_mse"].at_01 <= known.detection["down_up_mse"].at_1 <= 1
    assert by["median", "oblivious"].after == by["median", "oblivious"].before


def test_a_run_keeps_its_scaling_attacks_and_shows_them(tmp_path: Path) -> None:
    given = guards_on(tmp_path, guards=["none", "random"], detectors=["down_up_mse", {"name": "spectrum_points"}])
    found = audit(RunSpec.model_validate(given), tmp_path / "run")
    assert [(own.model, own.method, own.guard, own.threat) for own in found.scaling] == [
        ("net", "nearest", "none", "white-box"),
        ("net", "nearest", "random", "oblivious"),
        ("net", "nearest", "random", "adaptive"),
    ]
    assert found.lacking == 0
    assert float(torch.full((64,), 1e-40).mul(0.5).max()) > 0  # denormals are as they were
    assert list(found.scaling[0].scores) == ["down_up_mse", "spectrum_points"]
    header, _, *lines = (line for line in table(found, form="scaling").splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in header.strip("|").split("|")][:5] == [
        "model", "library", "method", "guard", "threat",
    ]  # fmt: skip
    assert len(lines) == 3
    detected = table(found, "csv", form="scaling_detectors").splitlines()
    assert len(detected) == 1 + 3 * 2
    for line in detected[1:]:
        assert 0 <= float(line.split(",")[5]) <= 1
    shown = page(found)
    assert 'id="scaling"' in shown
    assert "the attack that knows nothing of the guard gets" in shown
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "scaling").iterdir()}
    assert len(kept) == 3
    given["scaling"]["guards"] = ["none", "area", "random"]
    more = audit(RunSpec.model_validate(given), tmp_path / "run")
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "scaling").iterdir()}
    assert len(now) == 5
    assert {name: now[name] for name in kept} == kept  # a new guard makes nothing anew
    assert [own.guard for own in more.scaling] == ["none", "area", "area", "random", "random"]
    np.testing.assert_array_equal(more.scaling[4].scores["down_up_mse"], found.scaling[2].scores["down_up_mse"])
    np.testing.assert_array_equal(more.scaling[4].target.intersection, found.scaling[2].target.intersection)


def test_the_block_is_in_no_key_of_the_cells(tmp_path: Path) -> None:
    given = guards_on(tmp_path)
    bare = {key: value for key, value in given.items() if key != "scaling"}
    keys = [
        [job.key for job in plan(RunSpec.model_validate(one), ("a", "b"), Contents()).jobs] for one in (given, bare)
    ]
    assert keys[0] == keys[1] != []


def test_a_run_without_the_block_is_as_it_was(tmp_path: Path) -> None:
    spec = small(tmp_path, count=2, attacks=["fgsm"], eps=["4/255"])
    assert spec.scaling is None
    found = audit(spec, tmp_path / "run")
    assert not found.scaling
    assert not (tmp_path / "run" / "scaling").exists()
    assert 'id="scaling"' not in page(found)
    with pytest.raises(UserError, match=r"holds no image scaling attacks; ask for them in its spec"):
        table(found, form="scaling")


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"guards": ["medain"]}, "no guard is called 'medain' (did you mean 'median'?)"),
        ({"guards": [{"name": "median", "size": 3}]}, "guard 'median' has no argument 'size'"),
        ({"guards": ["area", "area"]}, "guards: 'area' is there twice"),
        ({"methods": ["area", "area"]}, "methods: 'area' is there twice"),
        ({"detectors": ["down_up"]}, "no scaling_detector is called 'down_up'"),
        ({"detectors": [{"name": "down_up_mse", "size": 3}]}, "has no argument 'size'"),
        ({"eps": 2}, "eps 2 must be from 0 to below 1: write 2/255"),
        ({"guard": ["area"]}, "unknown key 'guard' (did you mean 'guards'?)"),
    ],
)
def test_what_cannot_be_asked_is_said(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    with pytest.raises((UserError, ValueError)) as error:
        RunSpec.model_validate(guards_on(tmp_path, **over))
    assert said in str(error.value)


def test_what_cannot_be_attacked_is_said_before_any_work(tmp_path: Path) -> None:
    for number, (over, data, last, said) in enumerate(
        (
            ({"methods": ["cubic"]}, {}, None, "method must be one of nearest"),
            ({"guards": [{"name": "median", "reach": 0}]}, {}, None, "reach must be a number above 0"),
            ({"detectors": [{"name": "spectrum_points", "level": 0}]}, {}, None, "level must be a number above 0"),
            ({}, {"limit": 1}, None, "p00 is alone"),
            ({}, {"size": [48, 64]}, None, "is not larger than what a model sees"),
            ({}, {}, (8, 16), r"p02.png: the picture \(8 x 16\) is not larger than what a model sees"),
            ({"factor": 2}, {"size": None}, (8, 16), "the images differ in size .* give data a `size"),
        )
    ):
        given = guards_on(tmp_path, **over)
        given["data"] |= data
        for folder, shape in (("images", (3,)), ("masks", ())) if last else ():
            Image.fromarray(np.zeros((*last, *shape), np.uint8)).save(tmp_path / folder / "p02.png")
        with pytest.raises(UserError, match=said):
            audit(RunSpec.model_validate(given), tmp_path / f"run{number}")
        assert not (tmp_path / f"run{number}" / "cells").exists()


def test_a_guard_of_ones_own_has_to_name_the_attack_that_knows_of_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def blur(resizer):\n    return resizer\n")
    with pytest.raises(ValueError, match=r"names no attack that knows of it; give its function an `adaptive`"):
        Scaling.model_validate({"guards": [f"{path}:blur"]})
    other = tmp_path / "other.py"
    other.write_text("def blur(resizer):\n    return resizer\n\n\nblur.adaptive = 'image_scaling'\n")
    asked = Scaling.model_validate({"guards": [f"{other}:blur"]})
    assert [threat for _, threat in asked.tries()] == ["oblivious", "adaptive"]
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def blur(resizer):\n    return resizer\n\n\nblur.adaptive = 'median_scalign'\n")
    with pytest.raises(UserError, match=r"no scaling is called 'median_scalign' \(did you mean 'median_scaling'\?\)"):
        Scaling.model_validate({"guards": [f"{wrong}:blur"]})


def test_an_attack_of_ones_own_on_a_guard_is_made_anew_when_it_is_edited(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    (tmp_path / "mine.py").write_text(f"def blur(resizer):\n    return resizer\n\n\nblur.adaptive = '{own}:mine'\n")
    text = "def mine(source, target, resizer):\n    return source\n"
    own.write_text(text)
    spec = RunSpec.model_validate(guards_on(tmp_path, guards=[f"{tmp_path}/mine.py:blur"]))
    data = build.dataset(spec.data)

    def keys() -> dict[str, str]:
        code_digest.cache_clear()
        return {job.threat: job.key for job in hidden.plan(spec, data, Contents())}

    before = keys()
    assert keys() == before
    own.write_text(text + "# edited\n")
    after = keys()
    assert after["oblivious"] == before["oblivious"]
    assert after["adaptive"] != before["adaptive"]


def test_a_detector_of_ones_own_that_scores_nan_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def score(pictures, resizer, size):\n    return [float('nan')] * len(pictures)\n")
    spec = RunSpec.model_validate(guards_on(tmp_path, detectors=[f"{path}:score"]))
    assert spec.scaling is not None
    with pytest.raises(UserError, match=r"scaling_detector .*mine.py:score' scores a picture nan"):
        scale_attack(build.dataset(spec.data), {}, [Resizer("torch", "nearest")], detectors=spec.scaling.detectors)


def test_what_a_guard_costs_is_known_beside_its_oblivious_attack_alone(tmp_path: Path) -> None:
    spec = RunSpec.model_validate(guards_on(tmp_path, guards=["median"]))
    assert spec.scaling is not None
    data = build.dataset(spec.data)
    nets = {"net": build.model(spec.models[0], data.class_names)}
    rows = scale_attack(data, nets, [Resizer("torch", "nearest")], tries=spec.scaling.tries())
    made = attacks(rows, exact=True)
    blind, known = (float(row[made.header.index("cost")]) for row in made.rows)
    assert blind == 1
    assert known == pytest.approx(rows[1].change / rows[0].change)
    assert known > 1.2


def test_a_window_ends_with_the_picture() -> None:
    resizer, picture = Resizer("torch", "nearest"), noise(12, 16)
    far, all_of_it = (median(resizer, reach=reach).filtered(picture, (3, 4)) for reach in (1e308, 4))
    np.testing.assert_array_equal(far, all_of_it)


def test_plain_numbers_of_the_block_are_in_the_specs_unit(tmp_path: Path) -> None:
    spec = RunSpec.model_validate(guards_on(tmp_path, eps=3) | {"unit": "1/255", "eps": [4]})
    assert spec.scaling is not None
    assert spec.scaling.eps == pytest.approx(3 / 255)


def test_the_command_takes_guards_and_detectors(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save_spec(tmp_path / "spec.yaml", guards_on(tmp_path, guards=["none"]))
    with pytest.raises(SystemExit) as exit:
        cli.main(["scaling", str(path), "--limit", "2", "--guard", "median", "--detector", "down_up_ssim"])
    torch.set_flush_denormal(False)
    out, err = capfd.readouterr()
    assert (exit.value.code, err) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in line.split("|")][4:6] for line in lines[2:4]] == [
        ["median", "oblivious"],
        ["median", "adaptive"],
    ]
    assert "down_up_ssim" in lines[-1]


def test_sampled_is_what_a_guard_may_be_built_from() -> None:
    """One's own filter of the read pixels: their largest neighbour."""

    def largest(values: NDArray[np.uint8], counted: NDArray[np.bool_]) -> NDArray[Any]:
        return np.where(counted[:, :, None], values, 0).max(1)

    picture = noise(8, 8)
    made = Sampled(Resizer("torch", "nearest"), largest)(picture, (2, 2))
    read = reads(Resizer("torch", "nearest"), 8, 8, (2, 2))
    expected = [max(int(picture[at][0]) for at in window(read, y, x, 4, 4)) for y, x in np.argwhere(read)]
    np.testing.assert_allclose(made[:, :, 0].ravel() * 255, expected, atol=1e-4)


def test_the_spectrum_shows_colours_that_hide_in_a_common_brightness() -> None:
    rng = np.random.default_rng(0)
    picture = np.full((64, 64, 3), 120, np.uint8) + rng.integers(0, 9, (64, 64, 1), dtype=np.uint8)
    hidden = picture.copy()
    hidden[::4, ::4] += np.array([60, 0, 0], np.uint8)
    hidden[::4, ::4] -= np.array([0, 30, 30], np.uint8)
    np.testing.assert_array_equal(hidden.sum(2), picture.sum(2))
    clean, attacked = spectrum_energy([picture, hidden], Resizer("torch", "nearest"), (16, 16))
    assert attacked > clean + 6
