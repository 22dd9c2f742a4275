"""Resizers against their libraries, the image scaling attack against exact optima, and what an audit makes of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import minimize

from audit_kit import CLASSES, content, save_spec, small, write_net, write_pictures
from segaudit import cli
from segaudit.attacks import _resize
from segaudit.attacks._resize import LIBRARIES, Resizer, matrix, resizers
from segaudit.attacks.image_scaling import HALF, _Problem, image_scaling
from segaudit.audit import build
from segaudit.audit.cells.hiding import SAFE, attack_pair
from segaudit.audit.scaling import scale_attack
from segaudit.data.scenes import scenes
from segaudit.types import VOID, UserError

pytestmark = pytest.mark.usefixtures("one_thread")

try:
    import cv2
except ImportError:
    cv2 = None
HERE = [resizer for library in LIBRARIES if library != "opencv" or cv2 for resizer in resizers(library)]
NEAREST = [r for r in HERE if r.method.startswith("nearest")]
PLAIN = [r for r in HERE if r.library != "pil" and r.method in ("bilinear", "bicubic", "lanczos")]
"""Those that look at a few pixels only, however many there are."""
each = pytest.mark.parametrize("resizer", HERE, ids=lambda r: f"{r.library}-{r.method}")
Picture = NDArray[np.uint8]


def own_call(resizer: Resizer, picture: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The library's own resize, as its users write it: uint8 (PIL, OpenCV), float32 in [0, 1] (torch), or float32."""
    height, width = size
    if resizer.library == "pil":
        how = getattr(Image.Resampling, {"area": "BOX"}.get(resizer.method, resizer.method.upper()))
        if picture.dtype == np.uint8:
            return np.asarray(Image.fromarray(picture).resize((width, height), how))
        return np.dstack([np.asarray(Image.fromarray(picture[..., c]).resize((width, height), how)) for c in range(3)])
    if resizer.library == "opencv":
        how = {"bilinear": "LINEAR", "bicubic": "CUBIC", "lanczos": "LANCZOS4"}.get(
            resizer.method, resizer.method.upper()
        )
        return cv2.resize(picture, (width, height), interpolation=getattr(cv2, f"INTER_{how}"))
    smooth = {"antialias": True} if "antialias" in resizer.method else {}
    mode = resizer.method.removesuffix("_antialias").replace("_", "-")
    pixels = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))[None]
    return F.interpolate(pixels, size, mode=mode, **smooth)[0].permute(1, 2, 0).numpy()


def as_seen(resizer: Resizer, picture: Picture, size: tuple[int, int]) -> NDArray[np.float64]:
    """What a network sees of a picture of 8 bits, in [0, 1]."""
    if resizer.library == "torch":
        return own_call(resizer, picture / np.float32(255), size).astype(np.float64).clip(0, 1)
    return own_call(resizer, picture, size) / 255


def noise(height: int, width: int, low: int = 0, high: int = 256, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)


def pictures(height: int, width: int, factor: float = 4) -> tuple[Picture, Picture]:
    """A scene, and another one that many times smaller."""
    data = scenes(split="test", images=2, size=(height, width))
    source, other = (data.read(name)[0] for name in data.ids)
    return source, (SAFE(other, (int(height / factor), int(width / factor))) * 255).round().astype(np.uint8)


@each
@pytest.mark.parametrize("sizes", [(64, 96, 16, 24), (61, 97, 17, 23), (40, 50, 39, 33), (48, 24, 24, 24)])
def test_the_matrices_are_what_the_library_does(resizer: Resizer, sizes: tuple[int, int, int, int]) -> None:
    height, width, *small = sizes
    size = small[0], small[1]
    rows, columns = (matrix(resizer, side, end).numpy() for side, end in ((height, size[0]), (width, size[1])))
    assert rows.shape == (size[0], height)
    picture = noise(height, width, 64, 192)  # no overshoot to be clipped between PIL's two passes
    expected = np.einsum("ih,hwc,jw->ijc", rows, picture.astype(float), columns, optimize=True)
    in_float = own_call(resizer, picture.astype(np.float32), size)
    np.testing.assert_allclose(in_float, expected, rtol=0, atol=2e-3)  # torch's weights in float32
    seen = as_seen(resizer, picture, size)
    exact = resizer.method.startswith("nearest")
    rounding = 2e-3 if resizer.library == "torch" else 0 if exact else 1 if resizer.library == "opencv" else 1.5
    np.testing.assert_allclose(255 * seen, expected, rtol=0, atol=rounding + 1e-9)
    np.testing.assert_array_equal(resizer(picture, size), seen)
    harsh = noise(height, width)
    np.testing.assert_array_equal(resizer(harsh, size), as_seen(resizer, harsh, size))
    grey = picture[:, :, :1]
    np.testing.assert_array_equal(resizer(grey, size).shape, (*size, 1))
    assert np.abs(resizer(grey, size) - seen[:, :, :1]).max() <= 1 / 255  # a library may have another path for one band


@pytest.mark.parametrize("resizer", NEAREST, ids=lambda r: f"{r.library}-{r.method}")
@pytest.mark.parametrize("sizes", [(64, 96, 16, 24), (50, 41, 17, 10)])
def test_nearest_overwrites_the_sampled_pixels_and_no_others(
    resizer: Resizer, sizes: tuple[int, int, int, int]
) -> None:
    height, width, *small = sizes
    size = small[0], small[1]
    source, target = noise(height, width), noise(*size, seed=1)
    numbers = np.arange(height * width, dtype=np.float32).reshape(height, width, 1).repeat(3, 2)
    sampled = np.zeros(height * width, bool)
    sampled[own_call(resizer, numbers, size)[..., 0].astype(int).ravel()] = True
    assert sampled.sum() == size[0] * size[1]
    made = image_scaling(source, target, resizer, eps=0)
    np.testing.assert_array_equal(as_seen(resizer, made, size), as_seen(resizer, target, size))
    np.testing.assert_array_equal(made[~sampled.reshape(height, width)], source[~sampled.reshape(height, width)])
    near = image_scaling(source, target, resizer, eps=10 / 255)
    seen, before = (np.rint(255 * as_seen(resizer, p, size)).astype(int) for p in (near, source))
    np.testing.assert_array_equal(seen, before.clip(target.astype(int) - 10, target.astype(int) + 10))
    np.testing.assert_array_equal(near[~sampled.reshape(height, width)], source[~sampled.reshape(height, width)])


@each
def test_without_the_box_the_least_change_is_that_of_the_pseudo_inverse(resizer: Resizer) -> None:
    rng = np.random.default_rng(0)
    source, goal = 0.5 + 0.02 * rng.standard_normal((24, 20, 2)), 0.5 + 0.02 * rng.standard_normal((6, 5, 2))
    rows, columns = matrix(resizer, 24, 6).numpy(), matrix(resizer, 20, 5).numpy()
    short = goal - np.einsum("ih,hwc,jw->ijc", rows, source, columns)
    least = np.einsum("hi,ijc,wj->hwc", np.linalg.pinv(rows), short, np.linalg.pinv(columns))
    assert np.abs(source + least - 0.5).max() < 0.45
    used = np.ix_(rows.any(0), columns.any(0))
    problem = _Problem(torch.from_numpy(source[used]).float(), *map(torch.from_numpy, (rows, columns)))
    wanted = torch.from_numpy(goal).float()
    pixels, _, beyond = problem.solve(wanted, wanted, torch.zeros_like(wanted), 300)
    assert beyond < HALF / 10
    np.testing.assert_allclose(pixels.numpy() - source[used], least[used], rtol=0, atol=0.05 * np.abs(least).max())


@each
@pytest.mark.parametrize("eps", [0.0, 0.06])
def test_the_change_is_the_least_that_quadratic_programming_finds(resizer: Resizer, eps: float) -> None:
    """A column of 12 pixels, some at the end of their range: a generic solver's optimum, box and band and all."""
    a = matrix(resizer, 12, 3).numpy()
    source = np.array([1, 1, 0.9, 0.8, 0.1, 0, 0, 0.2, 0.5, 0.6, 0.7, 0.4])
    goal = np.array([0.45, 0.5, 0.15])
    assert np.abs(a @ source - goal).max() > eps + 0.1
    found = minimize(
        lambda x: ((x - source) ** 2).sum() / 2,
        source,
        jac=lambda x: x - source,
        bounds=[(0, 1)] * 12,
        constraints=[
            {"type": "ineq", "fun": lambda x: a @ x - goal + eps, "jac": lambda x: a},
            {"type": "ineq", "fun": lambda x: goal + eps - a @ x, "jac": lambda x: -a},
        ],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.success
    used = a.any(0)
    column = torch.from_numpy(source[used]).float().view(-1, 1, 1)
    wanted = torch.from_numpy(goal).float().view(-1, 1, 1)
    problem = _Problem(column, torch.from_numpy(a), torch.ones(1, 1, dtype=torch.float64))
    pixels, _, beyond = problem.solve(wanted - eps, wanted + eps, torch.zeros_like(wanted), 2000)
    assert beyond < HALF / 10
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert float((pixels - column).square().sum()) / 2 == pytest.approx(found.fun, rel=0.01)


@each
def test_no_smaller_change_of_a_whole_picture_is_possible(resizer: Resizer) -> None:
    """By weak duality: any multipliers give a bound below, and those that were found give nearly what was found."""
    source, target = (p / 255 for p in pictures(128, 160, factor=3.75))
    rows, columns = matrix(resizer, 128, 34), matrix(resizer, 160, 42)
    part, goal = torch.from_numpy(source[np.ix_(rows.any(0), columns.any(0))]).float(), torch.from_numpy(target).float()
    low, high = goal - 10 / 255, goal + 10 / 255
    problem = _Problem(part, rows, columns)
    pixels, dual, beyond = problem.solve(low, high, torch.zeros_like(goal), 1000)
    assert beyond < HALF / 10
    a, b = (m[:, m.any(0)].numpy() for m in (rows, columns))
    y = dual.double().numpy()
    back = np.einsum("ih,ijc,jw->hwc", a, y, b, optimize=True)
    nearest = (part.double().numpy() - back).clip(0, 1)  # of all pictures in the box, for these multipliers
    bound = ((nearest - part.numpy()) ** 2).sum() / 2 + (back * nearest).sum()
    bound -= np.where(y > 0, y * high.numpy(), y * low.numpy()).sum()
    change = float((pixels - part).double().square().sum() / 2)
    assert bound > 20
    assert bound * (1 - 1e-3) <= change <= bound * (1 + 2e-3)


def test_the_program_of_the_oracle_meets_the_box() -> None:
    """Or the test above would not try it: somewhere the least change without the box leaves [0, 1]."""
    a = matrix(Resizer("torch", "bilinear_antialias"), 12, 3).numpy()
    source = np.array([1, 1, 0.9, 0.8, 0.1, 0, 0, 0.2, 0.5, 0.6, 0.7, 0.4])
    free = source + np.linalg.pinv(a) @ (np.array([0.45, 0.5, 0.15]) - a @ source)
    assert free.min() < 0 or free.max() > 1


@each
@pytest.mark.parametrize("eps", [1 / 255, 4 / 255])
def test_the_goal_holds_after_rounding_in_the_librarys_own_resize(resizer: Resizer, eps: float) -> None:
    source, target = pictures(128, 160)
    before = source.copy()
    made = image_scaling(source, target, resizer, eps=eps)
    assert made.dtype == np.uint8
    assert made.shape == source.shape
    error = np.abs(as_seen(resizer, made, target.shape[:2]) - target / 255)
    assert error.max() <= eps + 1e-6
    assert np.abs(as_seen(resizer, source, target.shape[:2]) - target / 255).max() > 0.5
    assert error.max() > eps / 2  # no more is changed than must be
    np.testing.assert_array_equal(source, before)
    np.testing.assert_array_equal(made, image_scaling(source, target, resizer, eps=eps))


@pytest.mark.parametrize("resizer", [r for r in HERE if r.library != "pil"], ids=lambda r: f"{r.library}-{r.method}")
def test_a_picture_that_is_already_there_is_left_alone(resizer: Resizer) -> None:
    """Of full contrast: what overshoots the range is clipped by the library, so it need not be brought back."""
    source = noise(48, 64)
    target = np.rint(255 * as_seen(resizer, source, (12, 16))).astype(np.uint8)
    np.testing.assert_array_equal(image_scaling(source, target, resizer), source)


@each
def test_of_several_roundings_the_nearest_is_kept(resizer: Resizer, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = noise(48, 64, 40, 216), noise(12, 16, 100, 156, seed=1)
    reached = []
    for rounds in range(1, 6):
        monkeypatch.setattr("segaudit.attacks.image_scaling.ROUNDS", rounds)
        made = image_scaling(source, target, resizer, eps=0)
        reached.append(np.abs(as_seen(resizer, made, (12, 16)) - target / 255).max())
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] <= 1 / 255 + 1e-6


def test_an_odd_size_of_one_band_is_reached_too() -> None:
    source, target = (p[:, :, 1:2] for p in (pictures(128, 160)[0][:97, :131], pictures(128, 160)[1][:29, :31]))
    for resizer in (Resizer("pil", "bicubic"), Resizer("torch", "bilinear")):
        made = image_scaling(source, target, resizer)
        assert np.abs(resizer(made, (29, 31)) - target / 255).max() <= 2 / 255 + 1e-6


def test_what_resizers_skip_looks_like_the_source_and_what_they_weigh_becomes_the_target() -> None:
    source, target = pictures(256, 320, factor=8)
    own, hidden = SAFE(source, target.shape[:2]), target / 255
    made = {r: attack_pair(source, target, r) for r in HERE}
    area = made[SAFE]
    for resizer, one in made.items():
        assert one.linf <= 2 / 255 + 1e-6
        safely = SAFE(one.picture, target.shape[:2])
        to_source, to_hidden = np.abs(safely - own).mean(), np.abs(safely - hidden).mean()
        if resizer in NEAREST + PLAIN:
            assert one.similarity > 0.65, resizer  # 0.72 to 0.87 were measured
            assert area.change > 3 * one.change, resizer
            assert to_source < 0.1 * to_hidden, resizer
        else:
            assert one.change > 0.9 * area.change, resizer
            assert to_hidden < 0.1 * to_source, resizer
    assert made[Resizer("torch", "bilinear")].changed == pytest.approx(4 / 64, abs=0.005)
    assert made[Resizer("pil", "nearest")].changed == pytest.approx(1 / 64, abs=0.005)


def test_what_is_measured_is_what_it_says() -> None:
    source, target = pictures(128, 160)
    one = attack_pair(source, target, Resizer("torch", "bicubic"))
    error = one.small - target / 255
    delta = (one.picture.astype(float) - source) / 255
    assert one.linf == pytest.approx(np.abs(error).max(), rel=1e-5)
    assert one.l2 == pytest.approx(np.sqrt((error**2).sum()), rel=1e-5)
    assert one.change == pytest.approx(np.sqrt((delta**2).sum()), rel=1e-5)
    assert one.changed == (delta != 0).any(2).mean()
    assert 0 < one.similarity < 1


def test_a_target_out_of_reach_is_approached() -> None:
    """Neighbouring targets of a smooth resizer share pixels: black beside white cannot be had."""
    source = np.full((32, 32, 1), 128, np.uint8)
    target = (255 * (np.indices((8, 8)).sum(0) % 2)).astype(np.uint8)[:, :, None]
    for resizer in (Resizer("pil", "bilinear"), Resizer("torch", "bilinear_antialias")):
        error = np.abs(resizer(image_scaling(source, target, resizer), (8, 8)) - target / 255)
        assert 2 / 255 < error.max() < 0.4
    reached = Resizer("pil", "area")
    assert np.abs(reached(image_scaling(source, target, reached), (8, 8)) - target / 255).max() <= 2 / 255


@pytest.mark.parametrize(
    ("library", "method", "said"),
    [
        ("pill", "nearest", r"^library must be one of pil, opencv, torch, not 'pill' \(did you mean 'pil'\?\)$"),
        ("pil", "bilinaer", r"^method must be one of nearest, .*, not 'bilinaer' \(did you mean 'bilinear'\?\)$"),
        ("torch", "lanczos4", r"^method must be one of nearest, nearest_exact, .*, not 'lanczos4'"),
    ],
)
def test_a_resizer_that_does_not_exist_is_said(library: str, method: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Resizer(library, method)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _resize.matrix.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    for make in (lambda: Resizer("opencv", "area"), lambda: resizers("opencv")):
        with pytest.raises(UserError, match=r"^library 'opencv' is not installed; pip install opencv-python-headless$"):
            make()

    def old(*_: object, mode: str, **__: object) -> None:
        raise NotImplementedError(f"no mode {mode}")

    monkeypatch.setattr(F, "interpolate", old)
    with pytest.raises(UserError, match=r"^method 'area' is not in this version of torch: no mode area$"):
        Resizer("torch", "area")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": np.zeros((8, 8, 3))}, r"^source must be .* of 8 bits, not float64 \(8, 8, 3\)$"),
        ({"target": np.zeros((4, 4), np.uint8)}, r"^target must be an H x W x C .*, not uint8 \(4, 4\)$"),
        ({"target": np.zeros((4, 9, 3), np.uint8)}, r"^target must be no larger than .* 8 x 8, not 4 x 9$"),
        ({"target": np.zeros((4, 4, 1), np.uint8)}, r"^target must be of the source's 3 channels, not 1$"),
        ({"eps": 2}, r"^eps must be a number from 0 to below 1, not 2$"),
        ({"eps": "2/255"}, r"^eps must be a number from 0 to below 1, not '2/255'$"),
        ({"steps": 0}, r"^steps must be a whole number of at least 1, not 0$"),
    ],
)
def test_wrong_arguments_are_one_line(given: dict[str, Any], said: str) -> None:
    own = {"source": np.zeros((8, 8, 3), np.uint8), "target": np.zeros((4, 4, 3), np.uint8)} | given
    with pytest.raises(UserError, match=said):
        image_scaling(resizer=Resizer("pil", "nearest"), **own)


def test_the_rows_of_an_audit_are_those_of_a_loop_by_hand(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3, (48, 64))
    write_net(tmp_path)
    spec = small(tmp_path, data={"name": "folder", "root": str(tmp_path), "classes": CLASSES, "size": [12, 16]})
    data = build.dataset(spec.data)
    net = build.model(spec.models[0], data.class_names)
    told: list[tuple[int, int]] = []
    own = [Resizer("torch", "nearest"), Resizer("pil", "area")]
    rows = scale_attack(data, {"net": net}, own, eps=3 / 255, tell=lambda *at: told.append(at))
    assert [(row.model, row.library, row.method, row.images) for row in rows] == [
        ("net", r.library, r.method, 3) for r in own
    ]
    assert told == [(i + 1, 6) for i in range(6)]

    def miou(seen: list[NDArray[np.float64]], truth: list[NDArray[np.int64]]) -> float:
        ious = []
        with torch.no_grad():
            guess = [net(torch.from_numpy(x).permute(2, 0, 1)[None].float()).argmax(1)[0].numpy() for x in seen]
        for k in range(3):
            both = [(g[t != VOID] == k, t[t != VOID] == k) for g, t in zip(guess, truth, strict=True)]
            ious.append(sum((a & b).sum() for a, b in both) / sum((a | b).sum() for a, b in both))
        return float(np.mean(ious))

    large = [data.read(name)[0] for name in data.ids]
    hidden = [(data.sample(name)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for name in data.ids]
    labels = [data.sample(name)[1].numpy() for name in data.ids]
    turn = lambda values: [values[1], values[2], values[0]]
    for row, resizer in zip(rows, own, strict=True):
        made = [image_scaling(a, b, resizer, eps=3 / 255) for a, b in zip(large, turn(hidden), strict=True)]
        box = Resizer("pil", "area")
        assert row.clean == pytest.approx(miou([as_seen(box, p, (12, 16)) for p in large], labels), abs=1e-9)
        assert row.source == pytest.approx(miou([as_seen(box, p, (12, 16)) for p in made], labels), abs=1e-9)
        assert row.goal == pytest.approx(miou([p / 255 for p in turn(hidden)], turn(labels)), abs=1e-9)
        seen = [as_seen(resizer, p, (12, 16)) for p in made]
        assert row.target == pytest.approx(miou(seen, turn(labels)), abs=1e-9)
        assert row.linf == pytest.approx(
            max(np.abs(s - t / 255).max() for s, t in zip(seen, turn(hidden), strict=True))
        )
    weak, safe = rows
    assert weak.clean > 0.9
    assert weak.source > 0.8
    assert weak.target > 0.9
    assert safe.source < 0.5  # what turned into the other picture is the other picture
    assert safe.change > 2 * weak.change


def test_the_command_prints_a_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, 3)
    write_net(tmp_path)
    path = save_spec(tmp_path / "spec.yaml", content(tmp_path))

    def call(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as exit:
            cli.main(["scaling", str(path), *arguments])
        torch.set_flush_denormal(False)
        return exit.value.code, *capfd.readouterr()

    code, out, err = call(
        "--library", "torch", "--method", "nearest", "--factor", "3", "--limit", "2", "--eps", "1/255"
    )
    assert (code, err) == (0, "")
    title, _, header, _, row = out.splitlines()
    assert "2 pictures" in title
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["net", "torch", "nearest"]
    assert len(cells) == len(header.strip("|").split("|"))
    assert float(cells[7]) == 1.0
    code, out, err = call("--limit", "2", "--factor", "2")
    assert [line.split("|")[3].strip() for line in out.splitlines()[4:]] == [r.method for r in resizers("pil")]
    for arguments, said in (
        (("--library", "pillow"), "library must be one of pil, opencv, torch, not 'pillow'"),
        (("--method", "cubic"), "method must be one of nearest"),
        (("--factor", "0.5"), "factor must be a number above 1 and at most 64, not 0.5"),
        (("--eps", "two"), "eps: 'two' is not a number"),
        (
            (),
            "p00.png: the picture (32 x 40) is not larger than what a model sees (32 x 40): give data a smaller `size`",
        ),
    ):
        code, out, err = call(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert said in err
    alone = yaml.safe_load(path.read_text())
    alone["data"]["limit"] = 1
    save_spec(path, alone)
    assert "p00 is alone" in call()[2]
