"""The cheap copy of a network gives the same logits and gradients, whatever is in it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nets import KINDS, problem
from segaudit.models import build
from segaudit.models.fast import Fast
from segaudit.models.wrap import Wrapped
from segaudit.types import Segmenter

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("sky", "road", "car")


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def with_statistics(net: nn.Module) -> nn.Module:
    """Norms that do something: as after a training."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.3, 3)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias, std=0.3)
    return net


def norms_in(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def slope(model: Segmenter, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad((model(x) ** 2).sum(), x)[0]


def same(model: Segmenter, size: tuple[int, int] = (17, 23)) -> int:
    """Logits and gradients of the copy are the model's, and the model is as it was; gives the norms left."""
    kept = copy.deepcopy(model.state_dict())
    fast, x = Fast(model, "fp32", images(1, 3, *size)), images(3, 3, *size)
    assert model.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    expected = model(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(fast(x), expected, rtol=0, atol=float(expected.abs().max()) * 1e-4)
    exact, x = copy.deepcopy(model).double(), x.double()  # in float32 a ReLU at 0 may fall on either side
    up = slope(exact, x)
    assert up.abs().max() > 1e-6
    folded = Fast(exact, "fp32", x[:1])
    torch.testing.assert_close(slope(folded, x), up, rtol=0, atol=float(up.abs().max()) * 1e-9)
    assert norms_in(folded) == norms_in(fast)
    assert fast.class_names == model.class_names
    assert not any(module.training for module in fast.modules() if not isinstance(module, AlwaysTrain))
    assert not any(p.requires_grad for p in fast.parameters())
    return norms_in(fast)


def wrapped(net: nn.Module) -> Wrapped:
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return Wrapped(with_statistics(net), NAMES)


def unit(inputs: int, outputs: int, **own: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, **own), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_folded_net_is_the_same_net(kind: str, dtype: torch.dtype) -> None:
    p = problem(kind, dtype)
    fast = Fast(p.model, "fp32", p.images[:1])
    assert (norms_in(p.model), norms_in(fast)) == (1, 0)
    made = fast(p.images)
    assert made.dtype == dtype
    torch.testing.assert_close(made, p.model(p.images), rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-9)


def test_norms_after_plain_strided_grouped_and_biasless_convolutions_are_folded() -> None:
    bare = nn.Conv2d(8, 8, 1, bias=False)
    net = nn.Sequential(
        unit(3, 8, stride=2), unit(8, 8, groups=4), bare, nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 3, 1)
    )
    assert norms_in(net) == 3
    assert same(wrapped(net)) == 0


@pytest.mark.parametrize("name", ["Unet", "DeepLabV3Plus"])
def test_networks_of_smp_keep_no_batch_norm(name: str) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    model = build.build("smp", name, NAMES, args={"encoder_name": "mobilenet_v2"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.7, 1.3)
    assert norms_in(model) > 30
    assert same(model, (64, 64)) == 0


class Reused(nn.Module):
    """The convolution's output goes around the norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(self.norm(x) + x)


class Shared(nn.Module):
    """One convolution, called twice, before two norms or one of its calls before one; or a norm after two."""

    def __init__(self, convs: int, norms: int, calls: int = 2) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(convs))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(norms))
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = self.convs[i % len(self.convs)](x)
            x = self.norms[i % len(self.norms)](x).relu() if i < self.calls else x
        return x


class TwoNorms(nn.Module):
    """Two norms read one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 3, 3, padding=1), nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norms[0](x).relu() - self.norms[1](x)


class AlwaysTrain(nn.BatchNorm2d):
    """Takes the statistics of the batch, also in eval mode."""

    def train(self, mode: bool = True) -> AlwaysTrain:
        return super().train(True)


class Doubled(nn.BatchNorm2d):
    """A norm that does more than a norm."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_where_folding_would_be_wrong_nothing_changes() -> None:
    head = nn.Conv2d(8, 3, 1)
    assert same(wrapped(Reused())) == 1
    assert same(wrapped(Shared(convs=1, norms=2))) == 2
    assert same(wrapped(Shared(convs=2, norms=1))) == 1
    assert same(wrapped(TwoNorms())) == 2
    assert same(wrapped(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), head))) == 2
    assert same(wrapped(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), head))) == 1
    assert same(wrapped(nn.Sequential(nn.Conv2d(3, 8, 3), Doubled(8), head))) == 1


def test_what_cannot_be_folded_does_not_keep_the_rest_from_it() -> None:
    inplace = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(8))
    assert same(wrapped(nn.Sequential(unit(3, 8), inplace, nn.Conv2d(8, 3, 1)))) == 1
    always = nn.Sequential(nn.Conv2d(8, 8, 3), AlwaysTrain(8))
    assert same(wrapped(nn.Sequential(unit(3, 8), always, nn.Conv2d(8, 3, 1)))) == 1
    for norms, calls in ((2, 2), (1, 1)):
        shared = nn.Sequential(unit(3, 8), nn.Conv2d(8, 3, 1), Shared(1, norms, calls))
        assert same(wrapped(shared)) == norms


def test_a_norm_that_holds_its_activation_leaves_it_behind() -> None:
    layers = pytest.importorskip("timm.layers")
    net = nn.Sequential(nn.Conv2d(3, 8, 3), layers.BatchNormAct2d(8, act_layer=nn.SiLU), nn.Conv2d(8, 3, 1))
    assert same(wrapped(net)) == 0


def test_in_bf16_logits_are_float32_and_nearly_the_same() -> None:
    p = problem("segmentation", torch.float32)
    fast, seen = Fast(p.model, "bf16", p.images[:1]), []
    handle = next(m for m in fast.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(
        lambda _m, _i, output: seen.append(output.dtype)
    )
    logits, plain = fast(p.images), p.model(p.images)
    handle.remove()
    assert seen == [torch.bfloat16]
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert not torch.equal(logits, plain)
    assert (logits - plain).abs().max() < 0.05 * plain.abs().max()
    assert (logits.argmax(1) == plain.argmax(1)).double().mean() > 0.95
    up, expected = slope(fast, p.images), slope(p.model, p.images)
    assert up.dtype == torch.float32
    assert nn.functional.cosine_similarity(up.flatten(), expected.flatten(), dim=0) > 0.98
