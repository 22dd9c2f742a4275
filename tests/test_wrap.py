"""`Wrapped` against the same steps written out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.models.wrap import NEVER, Wrapped
from segaudit.types import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAMES = ("sky", "road", "car", "person")


class Given(nn.Module):
    """Returns what it was given, whatever comes in."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Any:
        return self.output


class Seen(nn.Module):
    """Keeps what came in; the first channels are the logits."""

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return images


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def coarse_net(outputs: int = 4, inputs: int = 3) -> nn.Module:
    """A net with dropout and norm, of a quarter of the input's resolution."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(inputs, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Tanh(), nn.Dropout(0.5), nn.Conv2d(8, outputs, 3, 2, 1)
    )
    nn.init.normal_(net[1].running_mean)
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_normalisation_padding_net_and_upsampling_and_so_is_its_gradient(dtype: torch.dtype) -> None:
    net = coarse_net().to(dtype)
    model = Wrapped(net, NAMES, mean=MEAN, std=STD, stride=8).to(dtype)
    x, direction = images(2, 3, 21, 30, dtype=dtype).requires_grad_(), images(2, 4, 21, 30, dtype=dtype)

    def by_hand(x: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, dtype=dtype).view(3, 1, 1) for values in (MEAN, STD))
        x = (x - mean) / std
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, 3, -1)], 2)
        x = torch.cat([x, x[:, :, :, -1:].expand(-1, -1, -1, 2)], 3)
        return F.interpolate(net(x), (24, 32), mode="bilinear", align_corners=False)[:, :, :21, :30]

    got, expected = model(x), by_hand(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    slopes = [torch.autograd.grad((y * direction).sum(), x)[0] for y in (got, expected)]
    assert slopes[1].abs().max() > 1e-3
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-6)


def test_order_scale_mean_and_std_reach_the_net_in_that_order() -> None:
    net, x = Seen(), images(1, 3, 4, 4)
    Wrapped(net, NAMES[:3], order="bgr", scale=255, mean=[103.9, 116.8, 123.7], std=[2, 3, 4])(x)
    for channel, (mean, std) in enumerate([(103.9, 2), (116.8, 3), (123.7, 4)]):
        torch.testing.assert_close(net.images[:, channel], (x[:, 2 - channel] * 255 - mean) / std)
    Wrapped(net, NAMES[:3], mean=0.5, std=[0.25])(x)
    torch.testing.assert_close(net.images, (x - 0.5) / 0.25)


def test_grey_is_the_luma_of_three_channels_and_keeps_the_gradient() -> None:
    net = coarse_net(inputs=1)
    x = images(1, 3, 8, 8).requires_grad_()
    model = Wrapped(net, NAMES, order="grey", mean=0.5, std=0.5)
    luma = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    expected = F.interpolate(net((luma - 0.5) / 0.5), (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    slope = torch.autograd.grad(model(x).square().sum(), x)[0]
    torch.testing.assert_close(slope[:, 0] / 0.299, slope[:, 2] / 0.114)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_number_of_channels_passes_as_it_is(channels: int) -> None:
    model = Wrapped(coarse_net(inputs=channels), NAMES, mean=[0.5] * channels, std=0.5)
    assert model(images(2, channels, 8, 12)).shape == (2, 4, 8, 12)


def test_channels_that_do_not_fit_are_said() -> None:
    for args, channels, fault in [
        ({"mean": MEAN}, 1, "preprocess.mean has 3 numbers, but the network's images 1 channels"),
        ({"std": STD, "order": "grey"}, 3, "preprocess.std has 3 numbers, but the network's images 1 channels"),
        ({"order": "bgr"}, 4, "order bgr is for 3 channels; the images have 4"),
        ({}, 1, "does not take images of 1 channels"),
    ]:
        with pytest.raises(UserError) as caught:
            Wrapped(coarse_net(), NAMES, **args)(images(1, channels, 8, 8))
        assert fault in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pack",
    [lambda y: y, lambda y: {"aux": 0 * y, "out": y}, lambda y: SimpleNamespace(logits=y, loss=None),
     lambda y: (y, 0 * y), lambda y: [[y], 0 * y], lambda y: {"pred": (y,)}],
)  # fmt: skip
def test_logits_are_found_in_whatever_the_net_returns(pack: Any) -> None:
    logits = torch.randn(2, 4, 6, 6)
    assert torch.equal(Wrapped(Given(pack(logits)), NAMES)(images(2, 3, 6, 6)), logits)


@pytest.mark.parametrize("output", [{"mask": torch.zeros(1)}, None, (), "no"])
def test_a_return_without_logits_is_refused(output: Any) -> None:
    with pytest.raises(UserError, match="without `out`, `logits` or `pred`"):
        Wrapped(Given(output), NAMES)(images(2, 3, 6, 6))


def test_a_classifier_is_a_1_x_1_map() -> None:
    logits = torch.randn(2, 4)
    got = Wrapped(Given(logits), NAMES, stride=32)(images(2, 3, 28, 28))
    assert torch.equal(got, logits[:, :, None, None])
    with pytest.raises(UserError, match="shape \\(2, 6, 6\\), not N x K x H x W"):
        Wrapped(Given(torch.zeros(2, 6, 6)), NAMES)(images(2, 3, 6, 6))


def test_one_logit_is_two_classes_with_a_sigmoid() -> None:
    net = coarse_net(1)
    x = images(2, 3, 16, 16).requires_grad_()
    model = Wrapped(net, ("background", "polyp"), outputs=1)
    chance = F.interpolate(net(x), (16, 16), mode="bilinear", align_corners=False).sigmoid()
    torch.testing.assert_close(model(x).softmax(1), torch.cat([1 - chance, chance], 1))
    truth = (images(2, 16, 16) > 0.5).long()
    losses = [
        F.cross_entropy(model(x), truth),
        F.binary_cross_entropy(chance[:, 0], truth.float()),
    ]
    slopes = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses]
    torch.testing.assert_close(slopes[0], slopes[1])


@pytest.mark.parametrize(
    ("outputs", "class_map"),
    [
        (6, {0: 1, 1: 0, 4: 2, 5: 2}),  # merged and permuted
        (6, {4: None, 5: None}),  # left out
        (4, {0: 3, 3: 0}),  # permuted alone
        (3, {}),  # a class without an output
        (6, {0: 3, 1: 3, 2: 3, 3: None, 4: None, 5: 1}),  # all of it
    ],
)
def test_the_class_map_is_the_argmax_then_the_map(outputs: int, class_map: dict[int, int | None]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, outputs, 5, 7, requires_grad=True)
    got = Wrapped(Given(logits), NAMES, outputs=outputs, class_map=class_map)(images(8, 3, 5, 7))
    target = [class_map.get(i, i) for i in range(outputs)]
    kept = [i for i in range(outputs) if target[i] is not None]
    winner = torch.tensor(kept)[logits[:, kept].argmax(1)]
    expected = torch.tensor([-1 if t is None else t for t in target])[winner]
    assert torch.equal(got.argmax(1), expected)
    assert len(expected.unique()) > 1
    for k in set(range(4)) - set(target):
        assert (got[:, k] == NEVER).all()
    score = F.cross_entropy(got, expected)
    slope = torch.autograd.grad(score, logits)[0]
    assert slope[:, kept].abs().sum((0, 2, 3)).min() > 0
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    ("outputs", "class_map", "fault"),
    [
        (5, None, "5 outputs for 4 classes need a class_map, such as {4: null}"),
        (3, None, "a class without an output is never predicted"),
        (1, None, "a network with one output is binary, but the data have 4 classes"),
        (0, None, "at least 1"),
        (5, {3: None}, "class_map sends output 4 to class 4"),
        (5, {4: -1}, "class_map sends output 4 to class -1"),
        (5, {4: None, 5: 0}, "class_map names output 5, but the outputs are 0 to 4"),
    ],
)
def test_outputs_and_a_class_map_that_do_not_fit_are_refused(outputs: int, class_map: Any, fault: str) -> None:
    with pytest.raises(UserError) as caught:
        Wrapped(nn.Identity(), NAMES, outputs=outputs, class_map=class_map)
    assert fault in str(caught.value)


def test_a_class_map_of_one_logit_is_refused() -> None:
    with pytest.raises(UserError, match="takes no class_map"):
        Wrapped(nn.Identity(), NAMES[:2], outputs=1, class_map={0: 0})


def test_another_number_of_outputs_than_said_is_refused() -> None:
    with pytest.raises(UserError, match=r"has 6 outputs, not 4 .* give the model `outputs: 6` and a class_map"):
        Wrapped(coarse_net(6), NAMES)(images(1, 3, 8, 8))


@pytest.mark.parametrize(
    "preprocess",
    [{"order": "gbr"}, {"stride": 0}, {"stride": 2.0}, {"scale": "255"}, {"scale": 0}, {"std": [0.2, 0, 0.2]},
     {"mean": "imagenet"}, {"mean": []}, {"mean": [0.5, None]}, {"std": float("nan")}, {"mean": None}],
)  # fmt: skip
def test_wrong_preprocessing_is_refused_by_its_key(preprocess: dict[str, Any]) -> None:
    (key,) = preprocess
    with pytest.raises(UserError, match=f"preprocess.{key}"):
        Wrapped(nn.Identity(), NAMES[:3], **preprocess)


def test_it_is_frozen_in_eval_mode_and_has_no_state_but_the_nets() -> None:
    net = coarse_net()
    model = Wrapped(net, NAMES, mean=MEAN, std=STD)
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert set(model.state_dict()) == {f"net.{key}" for key in net.state_dict()}
    assert model.num_classes == 4
    x = images(1, 3, 8, 8)
    assert torch.equal(model(x), model(x))


def test_a_gradient_flows_under_bf16_autocast() -> None:
    model = Wrapped(coarse_net(6), NAMES, mean=MEAN, std=STD, stride=8, outputs=6, class_map={4: 0, 5: None})
    x = images(2, 3, 21, 30).requires_grad_()
    truth = torch.zeros(2, 21, 30, dtype=torch.long)
    exact = torch.autograd.grad(F.cross_entropy(model(x), truth), x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
        rough = torch.autograd.grad(F.cross_entropy(logits.float(), truth), x)[0]
    assert rough.dtype == torch.float32
    assert F.cosine_similarity(rough.flatten(), exact.flatten(), 0) > 0.99
