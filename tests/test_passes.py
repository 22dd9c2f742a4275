"""Counting passes, and what the processor is fast at."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nets import KINDS, problem
from segaudit import registry
from segaudit.models.fast import Fast
from segaudit.nn import precision
from segaudit.nn.passes import count_passes, watch
from segaudit.types import VOID, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("name", "own", "forwards", "backwards"),
    [
        ("fgsm", {}, 1, 1),
        ("fgsm", {"label": "prediction"}, 2, 1),
        ("fgsm_ll", {}, 1, 1),
        ("ifgsm", {"steps": 4}, 4, 4),
        ("pgd", {"steps": 3}, 3, 3),
        ("pgd", {"steps": 3, "restarts": 2}, 8, 6),
    ],
)
def test_every_image_that_passes_is_counted(
    kind: str, fast: bool, name: str, own: dict[str, Any], forwards: int, backwards: int
) -> None:
    p = problem(kind, torch.float32, count=3)
    model = Fast(p.model, "fp32", p.images[:1]) if fast else p.model
    with count_passes(model) as passes:
        registry.load("attack", name)(model, p.images, p.labels, rng=p.streams(), eps=0.1, **own)
    assert (passes.forwards, passes.backwards) == (3 * forwards, 3 * backwards)


def test_passes_outside_of_the_block_are_not_counted_and_no_hook_is_left() -> None:
    p = problem("binary", torch.float32)
    with count_passes(p.model) as outer:
        p.model(p.images)
        with pytest.raises(RuntimeError, match="size"), count_passes(p.model) as inner:
            p.model(torch.cat([p.model(p.images[:1]), p.images]))
        p.model(p.images[:2])
    p.model(p.images)
    assert (inner.forwards, inner.backwards) == (1, 0)
    assert (outer.forwards, outer.backwards) == (4 + 1 + 2, 0)
    assert not p.model._forward_hooks


def test_each_way_back_through_one_forward_pass_counts() -> None:
    p = problem("segmentation", torch.float32)
    x = p.images.clone().requires_grad_()
    with count_passes(p.model) as passes:
        logits = p.model(x)
        for k in range(3):
            torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)
    assert (passes.forwards, passes.backwards) == (4, 12)


def test_a_patch_counts_by_its_share_of_an_image() -> None:
    p = problem("segmentation", torch.float32)
    height, width = p.images.shape[2:]
    x = p.images.clone().requires_grad_()
    with count_passes(p.model, (height, width)) as passes:
        p.model(p.images)
        (slope,) = torch.autograd.grad(p.model(images=x[:3, :, : height // 2]).sum(), x)
    share = 3 * (height // 2) / height
    assert slope.any()
    assert (passes.forwards, passes.backwards) == pytest.approx((4 + share, share))


def test_precision_is_what_is_asked_for_or_what_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.resolve("fp32") == "fp32"
    assert precision.resolve("bf16") == "bf16"
    for has, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "bf16_is_fast", lambda device, has=has: has)
        assert precision.resolve("auto") == expected
    with pytest.raises(UserError, match="precision must be one of auto, bf16, fp32, not 'fp16'"):
        precision.resolve("fp16")


def test_bf16_on_the_cpu_is_asked_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for amx in (True, False):
        monkeypatch.setattr(torch.cpu, probes[0], lambda: False, raising=False)
        monkeypatch.setattr(torch.cpu, probes[1], lambda amx=amx: amx, raising=False)
        assert precision.bf16_is_fast("cpu") is amx
    for probe in probes:
        monkeypatch.delattr(torch.cpu, probe)
    assert precision.bf16_is_fast("cpu") is False


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_of_an_attack_is_that_of_its_iterates(kind: str) -> None:
    p = problem(kind)
    made = [p.images]
    for steps in (1, 2, 3):
        with watch(p.model, p.labels) as curve:
            own = {"eps": 0.1, "step_size": 0.03, "steps": steps, "start": False}
            made.append(registry.load("attack", "pgd")(p.model, p.images, p.labels, rng=p.streams(), **own))
    assert len(curve) == 3
    for images, (loss, share) in zip(made, curve, strict=False):
        logits = p.model(images)
        valid = p.labels != VOID
        expected = -logits.log_softmax(1).permute(0, 2, 3, 1)[valid].gather(1, p.labels[valid][:, None]).mean()
        assert loss == pytest.approx(float(expected))
        assert share == float((logits.argmax(1) == p.labels)[valid].double().mean())
    before = len(curve)
    p.model(p.images)
    assert len(curve) == before


def test_a_pass_of_other_images_or_of_none_valid_is_no_part_of_the_curve() -> None:
    p = problem("segmentation")
    with watch(p.model, p.labels) as curve:
        p.model(p.images[:1])
    assert curve == []
    with watch(p.model, torch.full_like(p.labels, VOID)) as curve:
        p.model(p.images)
    assert curve == []


def test_a_pass_of_another_size_is_no_part_of_the_curve() -> None:
    p = problem("segmentation")
    with watch(p.model, p.labels) as curve:
        p.model(p.images[..., 4:])
    assert curve == []
