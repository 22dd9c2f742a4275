"""Weights in and out: what is loaded, what is refused, and that nothing in a file is ever run."""

from __future__ import annotations

import argparse
import json
import lzma
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from segaudit.models import _squeeze, weights
from segaudit.types import UserError


def net(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Sequential(nn.Conv2d(width, 2, 1)))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def loaded(path: Path, into: nn.Module) -> nn.Module:
    weights.fill(into, weights.read(path)[0], path)
    return into


class Evil:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


def test_weights_and_card_come_back(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    weights.write(net(), path, {"score": 0.5})
    tensors, card = weights.read(path)
    assert card == {"score": 0.5}
    assert set(tensors) == set(net().state_dict())
    assert not same(net(), net(1))
    assert same(loaded(path, net(1)), net())


def test_fp16_weights_are_read_into_an_fp32_net(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    weights.write(net(), path, {}, torch.float16)
    into = loaded(path, net(1))
    assert {p.dtype for p in into.parameters()} == {torch.float32}
    assert torch.equal(into[0].weight, net()[0].weight.half().float())


def test_16_bit_weights_are_squeezed_without_loss(tmp_path: Path) -> None:
    """A sixth smaller or more, bit for bit the same, what is not finite or has no pattern too."""
    own = nn.Linear(64, 512).requires_grad_(False)
    own.weight[0, :3] = torch.tensor([torch.nan, -0.0, torch.inf])
    weights.write(own, tmp_path / "net.safetensors", {"a": 1}, torch.float16)
    tensors, card = weights.read(tmp_path / "net.safetensors")
    assert card == {"a": 1}
    for key, value in own.state_dict().items():
        assert torch.equal(tensors[key].view(torch.int16), value.half().view(torch.int16))
    assert (tmp_path / "net.safetensors").stat().st_size < 0.88 * 2 * sum(p.numel() for p in own.parameters())
    noise = torch.randint(-(2**15), 2**15, (4096,), dtype=torch.int16).view(torch.float16)
    assert _squeeze.squeezed({"noise": noise})[1] == {}


def test_8_bit_weights_are_squeezed_without_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = nn.Linear(64, 512).requires_grad_(False)
    own.weight.normal_()  # few of the integers are large, which is what there is to gain
    weights.write(own, tmp_path / "net.safetensors", {}, torch.int8)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert "weight@xz8" in file.keys()  # noqa: SIM118
    integers, scale = weights._packed(own.weight)
    made = weights.read(tmp_path / "net.safetensors")[0]["weight"]
    assert torch.equal(made, integers.float() * scale.float()[:, None])


@pytest.mark.parametrize(
    ("content", "shapes"),
    [
        (b"", {"a": [4]}),
        (b"no such bytes", {"a": [4]}),
        (lzma.compress(bytes(8), lzma.FORMAT_ALONE), {"a": [5]}),
        (lzma.compress(bytes(8), lzma.FORMAT_ALONE), {"a": [3]}),
        (lzma.compress(bytes(8), lzma.FORMAT_ALONE), {"a": [-2, -2]}),
        (lzma.compress(bytes(8), lzma.FORMAT_ALONE), {"a": "4"}),
        (lzma.compress(bytes(8), lzma.FORMAT_ALONE), {}),
        (lzma.compress(bytes(8), lzma.FORMAT_ALONE), [4]),
        (lzma.compress(bytes(2**27), lzma.FORMAT_ALONE), {"a": [2**26]}),
        (b"\x5d" + (2**30).to_bytes(4, "little") + lzma.compress(bytes(8), lzma.FORMAT_ALONE)[5:], {"a": [4]}),
    ],
)
def test_what_was_never_squeezed_is_refused(tmp_path: Path, content: bytes, shapes: Any) -> None:
    small = torch.tensor(list(content), dtype=torch.uint8)
    save_file({"a@xz": small}, tmp_path / "net.safetensors", {"squeezed": json.dumps(shapes)})
    with pytest.raises(UserError, match="is not a whole safetensors file") as caught:
        weights.read(tmp_path / "net.safetensors")
    assert "\n" not in str(caught.value)


def test_int8_weights_are_within_half_a_step_and_come_back_the_same(tmp_path: Path) -> None:
    path, first = tmp_path / "net.safetensors", net()
    weights.write(first, path, {}, torch.int8)
    once = loaded(path, net(1))
    step = first[0].weight.flatten(1).abs().amax(1) / 127
    off = (once[0].weight - first[0].weight).abs().flatten(1).amax(1)
    assert (off <= 0.51 * step + 127 * step / 2**9).all()  # the scale is rounded too
    assert torch.equal(once[0].bias, first[0].bias)
    stored = load_file(path)
    assert (stored["0.weight"].dtype, stored["0.weight@scale"].shape) == (torch.int8, (4,))
    weights.write(once, path, {}, torch.int8)
    again = load_file(path)
    assert all(torch.equal(value, again[key]) for key, value in stored.items())
    assert same(loaded(path, net(2)), once)


def test_int8_keeps_what_is_zero_or_broken(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    weights.write(layer, tmp_path / "net.safetensors", {}, torch.int8)
    assert (loaded(tmp_path / "net.safetensors", nn.Linear(3, 2)).weight[0] == 0).all()
    with torch.no_grad():
        layer.weight[1, 1] = torch.nan
    weights.write(layer, tmp_path / "net.safetensors", {}, torch.int8)
    with pytest.raises(UserError, match="weight holds NaN or infinite values"):
        loaded(tmp_path / "net.safetensors", nn.Linear(3, 2))


@pytest.mark.parametrize(
    "tensors",
    [
        {"0.weight": torch.zeros(2, 3, dtype=torch.int8), "0.weight@scale": torch.ones(3)},
        {"0.weight": torch.zeros(2, 3), "0.weight@scale": torch.ones(2)},
        {"0.weight@scale": torch.ones(2)},
    ],
)
def test_scales_of_nothing_are_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"not a whole safetensors file \(the scales of 0\.weight fit nothing"):
        weights.read(path)


def test_integers_without_scales_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"weight": torch.ones(2, 3, dtype=torch.int8), "bias": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="weight holds whole numbers without their scales"):
        loaded(path, nn.Linear(3, 2))


@pytest.mark.parametrize("card", ["[]", "null", "3", '"a"'])
def test_a_card_that_is_no_mapping_is_refused(card: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"weight": torch.ones(2, 3)}, path, metadata={"segaudit": card})
    with pytest.raises(UserError, match="its model card is not a mapping"):
        weights.read(path)


def test_a_card_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"weight": torch.ones(2, 3)}, path, metadata={"segaudit": "[" * 100_000})
    with pytest.raises(UserError, match=r"not a whole safetensors file \(maximum recursion depth"):
        weights.read(path)


def test_the_same_weights_are_the_same_file(tmp_path: Path) -> None:
    path, found = tmp_path / "net.safetensors", set()
    for _ in range(20):
        weights.write(net(), path, {"score": 0.5, "name": "\u00e9"})
        found.add(path.read_bytes())
    assert len(found) == 1
    assert weights.read(path)[1] == {"score": 0.5, "name": "\u00e9"}


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    shared = nn.Linear(3, 3)
    tied = nn.Sequential(shared, shared)
    weights.write(tied, tmp_path / "tied.safetensors", {})
    other = nn.Linear(3, 3)
    assert same(loaded(tmp_path / "tied.safetensors", nn.Sequential(other, other)), tied)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        lambda s: {"model_state_dict": s},
        lambda s: {"module." + k: v for k, v in s.items()},
        lambda s: {"state_dict": {"model." + k: v for k, v in s.items()}, "hyper_parameters": {"lr": 1}},
        lambda s: {"net": {"module._orig_mod." + k: v for k, v in s.items()}},
    ],
)
def test_common_checkpoints_are_read(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(net().state_dict()), tmp_path / "net.pth")
    assert same(loaded(tmp_path / "net.pth", net(1)), net())


def test_a_prefix_is_kept_where_it_is_the_networks_own(tmp_path: Path) -> None:
    outer = nn.Sequential()
    outer.add_module("model", net())
    torch.save(outer.state_dict(), tmp_path / "net.pth")
    into = nn.Sequential()
    into.add_module("model", net(1))
    assert same(loaded(tmp_path / "net.pth", into), outer)
    assert same(loaded(tmp_path / "net.pth", net(1)), net())


@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int | None) -> None:
    mark, path = tmp_path / "run", tmp_path / "net.pt"
    if protocol:
        path.write_bytes(pickle.dumps({"a": Evil(mark)}, protocol=protocol))
    else:
        torch.save({"a": Evil(mark), "state_dict": net().state_dict()}, path)
    fault = "is not a checkpoint" if protocol == 4 else r"more than tensors \(.*system\), and loading it could run code"
    with pytest.raises(UserError, match=rf"net\.pt .*{fault}"):
        weights.read(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))  # the file would have been written
    assert mark.exists()


@pytest.mark.parametrize("content", [net(), {"state_dict": {}, "args": argparse.Namespace(lr=1)}])
def test_whole_models_and_other_objects_are_refused_by_name(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"\((torch\.nn.*|argparse\.Namespace)\).* save the state_dict alone"):
        weights.read(tmp_path / "net.pt")


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello world this is text", b"\x80\x02}q\x00.", bytes(range(256)) * 9])
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        weights.read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["net.pt", "old.pt", "net.safetensors"])
def test_half_a_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        weights.write(net(), path, {})
    else:
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=name == "net.pt")
    loaded(path, net(1))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=name):
        weights.read(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, {}, {"a": torch.zeros(1), "b": 1}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(UserError, match="not a state_dict"):
        weights.read(tmp_path / "net.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*net\.pt"):
        weights.read(tmp_path / "net.pt")


def test_what_does_not_match_is_listed(tmp_path: Path) -> None:
    state = net().state_dict()
    del state["1.bias"]
    state["2.0.weight"] = torch.zeros(7, 4, 1, 1)
    state |= {f"more.{i}": torch.zeros(1) for i in range(5)}
    before = net(1)
    with pytest.raises(UserError) as caught:
        weights.fill(before, state, "other.pt")
    for part in ("other.pt is of another network", "lacks 1.bias", "has besides more.0, more.1, more.2 and 2 more",
                 "2.0.weight is (7, 4, 1, 1), not (2, 4, 1, 1)"):  # fmt: skip
        assert part in str(caught.value)
    assert same(before, net(1))
    with pytest.raises(UserError, match="of another network"):
        weights.fill(net(width=5), net().state_dict(), "other.pt")


def test_unused_keys_are_left_out_and_no_others(tmp_path: Path) -> None:
    state = {**net().state_dict(), "aux.0": torch.full((1,), torch.nan)}
    into = net(1)
    weights.fill(into, state, "x.pt", unused=("aux.",))
    assert same(into, net())
    with pytest.raises(UserError, match=r"has besides aux\.0"):
        weights.fill(net(1), state, "x.pt", unused=("other.",))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state = net().state_dict()
    state["2.0.bias"] = torch.tensor([0.0, value])
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=r"net\.safetensors: 2\.0\.bias holds NaN or infinite"):
        loaded(tmp_path / "net.safetensors", net(1))
