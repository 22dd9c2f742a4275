"""Every network of `classic`: shapes, gradients, files, counts of parameters, per-sample gradients, an audit."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from audit_kit import audit, by_name
from segaudit.audit.spec import RunSpec
from segaudit.models import weights
from segaudit.models.build import build
from segaudit.models.classic import CLASSIFIERS, NETWORKS, classic
from segaudit.models.classic._parts import unpool
from segaudit.models.classic.deeplab_v2 import renamed
from segaudit.models.fast import Fast
from segaudit.types import Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = tuple(f"class {k}" for k in range(5))
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "fcn8s": ("fcn8s", {"width": 1 / 16}),
    "fcn8s-vgg16_bn": ("fcn8s", {"width": 1 / 16, "backbone": "vgg16_bn"}),
    "fcn8s-resnet18": ("fcn8s", {"width": 1 / 8, "backbone": "resnet18"}),
    "segnet": ("segnet", {"width": 1 / 16}),
    "dilatednet": ("dilatednet", {"width": 1 / 16}),
    "dilatednet-front": ("dilatednet", {"width": 1 / 16, "context": False, "batch_norm": True}),
    "enet": ("enet", {"width": 1 / 2}),
    "icnet": ("icnet", {"width": 1 / 4}),
    "deeplab_v2": ("deeplab_v2", {"width": 1 / 16}),
    "deeplab_v2-vgg16": ("deeplab_v2", {"width": 1 / 16, "backbone": "vgg16"}),
    "deeplab_v2-multi": ("deeplab_v2", {"width": 1 / 8, "backbone": "resnet18", "scales": [0.5, 0.75, 1]}),
    "deeplab_v2-caffe": ("deeplab_v2", {"width": 1 / 16, "backbone": "resnet50", "caffe": True}),
    "unet": ("unet", {"width": 1 / 8}),
    "crf_rnn": ("crf_rnn", {"base": "enet", "width": 1 / 2, "steps": 2, "exact": 64, "window": 3}),
    "lenet": ("lenet", {}),
    "resnet20": ("resnet20", {"width": 1 / 2}),
    "vgg16": ("vgg16", {"width": 1 / 16}),
}
VGG_DENSE = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
RESNET101 = 44_549_160 - 2048 * 1000 - 1000
"""torchvision's own figure, less the dense layer."""
# Network, arguments, classes, the paper's figure, how near to it (the last digit that it prints, or as said).
FULL: list[tuple[str, dict[str, Any], int, float, float]] = [
    ("fcn8s", {}, 21, 134e6, 0.005),
    ("segnet", {}, 11, 29.45e6, 0.0002),
    ("dilatednet", {"context": False}, 21, 134e6, 0.005),  # FCN8s's, of the same layers
    ("enet", {}, 19, 0.37e6, 0.04),
    ("icnet", {"width": 2}, 19, 26.5e6, 0.02),  # before the compression to half the channels
    ("deeplab_v2", {"backbone": "vgg16", "rates": [12]}, 21, 20.5e6, 0.003),
    ("deeplab_v2", {}, 21, RESNET101 + 4 * 21 * (9 * 2048 + 1), 0),
    ("unet", {}, 2, 31.0e6, 0.003),  # counted from the paper's figure, which has none
    ("lenet", {"channels": 1}, 10, 60e3, 0.03),  # its choice of maps in C3 saves 1,500
    ("resnet20", {}, 10, 0.27e6, 0.01),
    ("vgg16", {}, 10, 138_357_544 - VGG_DENSE, 0.001),
]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def small(case: str, seed: int = 0, **spec: Any) -> Segmenter:
    name, args = SMALL[case]
    return build("classic", name, NAMES, args=args, seed=seed, **spec)


def map_of(case: str, size: tuple[int, int]) -> tuple[int, int]:
    """The size of a network's map for images of a size."""
    return (1, 1) if case in CLASSIFIERS else size


def refused(name: str, *parts: str, outputs: int = 5, **args: Any) -> None:
    """Building ends in one line that holds every part."""
    with pytest.raises(UserError) as caught:
        classic(name, outputs, **args)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


def test_every_network_is_tried_and_every_figure_is_checked() -> None:
    assert {name for name, _ in SMALL.values()} == set(NETWORKS)
    assert {name for name, *_ in FULL} == set(NETWORKS) - {"crf_rnn"}


@pytest.mark.parametrize("size", [(64, 64), (37, 51)])
@pytest.mark.parametrize("case", SMALL)
def test_logits_and_a_gradient_to_every_image(case: str, size: tuple[int, int]) -> None:
    model, x = small(case), images(2, 3, *size).requires_grad_()
    logits = model(x)
    assert logits.shape == (2, 5, *map_of(case, size))
    slope = torch.autograd.grad(F.cross_entropy(logits, logits.argmin(1)), x)[0]
    assert slope.isfinite().all()
    assert slope.abs().amax((1, 2, 3)).min() > 0
    with torch.no_grad():
        torch.testing.assert_close(model(x[1:]), logits[1:], rtol=1e-3, atol=1e-3 * float(logits.abs().max()))


@pytest.mark.parametrize("case", SMALL)
def test_every_parameter_learns(case: str) -> None:
    model = small(case).train().requires_grad_(True)
    logits = model(images(2, 3, 64, 64))
    F.cross_entropy(logits, torch.zeros_like(logits[:, 0]).long()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not idle


@pytest.mark.parametrize("case", SMALL)
def test_saved_and_loaded_it_is_the_same(case: str, tmp_path: Path) -> None:
    model, x = small(case), images(1, 3, 40, 56)
    weights.write(model.net, tmp_path / "net.safetensors", {})  # type: ignore[arg-type]
    again = small(case, seed=1)
    assert not torch.equal(again(x), model(x))
    assert torch.equal(small(case, seed=1, weights=str(tmp_path / "net.safetensors"))(x), model(x))


@pytest.mark.parametrize(("name", "args", "classes", "figure", "near"), FULL)
def test_parameters_are_as_many_as_the_paper_has(
    name: str, args: dict[str, Any], classes: int, figure: float, near: float
) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in classic(name, classes, **args).net.parameters())
    assert abs(count - figure) <= near * figure, count


def test_counts_that_the_papers_have_of_parts() -> None:
    with torch.device("meta"):
        classes, net = 21, classic("dilatednet", 21).net
        assert sum(p.numel() for p in net.context.parameters()) == 64 * classes**2 + 8 * classes
        convolutions = [m for m in classic("unet", 2).net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
        assert len(convolutions) == 23
        base, crf = (sum(p.numel() for p in classic(n, 21).net.parameters()) for n in ("fcn8s", "crf_rnn"))
        assert crf - base == 2 * 21 + 21**2
        layers = [m for m in classic("resnet20", 10).net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(layers) == 20


@pytest.mark.parametrize("case", SMALL)
def test_the_copy_that_attacks_use_is_the_same_network(case: str) -> None:
    model, x = small(case), images(2, 3, 64, 64)
    folded = Fast(model, "fp32", x[:1])
    expected = model(x)
    torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-3)
    half = x.clone().requires_grad_()
    logits = Fast(model, "bf16", x[:1])(half)
    assert (logits - expected).abs().mean() < 0.1 * expected.abs().max()
    assert torch.autograd.grad(logits.square().mean(), half)[0].isfinite().all()


def test_the_unet_gives_every_image_a_gradient_of_its_own() -> None:
    net = classic("unet", 3, width=1 / 8, groups=4).net.train()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    assert not any(getattr(m, "inplace", False) for m in net.modules())
    parameters = {key: p.detach() for key, p in net.named_parameters()}
    x, y = images(3, 3, 32, 48), torch.randint(3, (3, 32, 48), generator=torch.Generator().manual_seed(0))

    def loss(parameters: dict[str, Tensor], image: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, parameters, (image[None],)), labels[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for i in range(3):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        for key, p in net.named_parameters():
            assert p.grad is not None
            torch.testing.assert_close(each[key][i], p.grad, rtol=1e-3, atol=1e-5)


WHOLE = """
import numpy as np
from segaudit.data.base import Dataset


class Whole(Dataset):
    image_labels = True

    class_names, palette = ("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255))

    def read(self, image_id):
        rng = np.random.default_rng(int(image_id))
        return rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), np.array([[int(image_id) % 3]], dtype=np.uint8)


def whole(split="val"):
    return Whole(["0", "1"])
"""


@pytest.mark.parametrize("classifiers", [False, True], ids=["scenes", "whole pictures"])
def test_every_network_is_audited(classifiers: bool, tmp_path: Path) -> None:
    (tmp_path / "whole.py").write_text(WHOLE)
    data = {"name": f"{tmp_path}/whole.py:whole"} if classifiers else {"name": "scenes", "images": 2}
    cases = [case for case in SMALL if (case in CLASSIFIERS) == classifiers]
    models = [{"source": "classic", "name": SMALL[c][0], "args": SMALL[c][1], "label": c} for c in cases]
    spec = {"name": "classic", "data": data, "models": models, "attacks": ["fgsm"], "eps": ["0.5/255"],
            "precision": "fp32"}  # fmt: skip
    found = by_name(audit(RunSpec.model_validate(spec), tmp_path / "run"))
    for case in cases:
        (attacked,) = [records for key, records in found.items() if key[0] == case and key[3] == "fgsm"]
        (clean,) = [records for key, records in found.items() if key[0] == case and key[3] == "none"]
        assert len(attacked) == 2
        assert (attacked.loss != clean.loss).all(), case
        if case != "segnet":  # untrained, its indices jump long before a gradient has told how far it holds
            assert (attacked.loss > clean.loss).all(), case


def test_torchvisions_files_fill_the_backbones(tmp_path: Path) -> None:
    from torchvision.models import resnet18
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(3)
    source = resnet18(weights=None).eval()
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    x = images(1, 3, 64, 64)
    net = classic("fcn8s", 5, backbone="resnet18", backbone_weights=str(tmp_path / "resnet18.pth")).net.eval()
    expected = source.maxpool(source.relu(source.bn1(source.conv1(x))))
    for found, layer in zip(net.backbone(x), (source.layer1, source.layer2, source.layer3, source.layer4), strict=True):
        expected = layer(expected)
        assert torch.equal(found, expected)
    dilated = classic("deeplab_v2", 5, backbone="resnet18", backbone_weights=str(tmp_path / "resnet18.pth")).net.eval()
    assert torch.equal(dilated.backbone(x)[1], net.backbone(x)[1])
    assert [tuple(m.shape[2:]) for m in dilated.backbone(x)] == [(16, 16), (8, 8), (8, 8), (8, 8)]

    features = nn.Sequential(make_layers(cfgs["D"], batch_norm=True)).eval()
    state = {f"features.{key[2:]}": value for key, value in features.state_dict().items()}
    save_file({**state, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16_bn.safetensors")
    for name, args in [("fcn8s", {"backbone": "vgg16_bn"}), ("segnet", {}), ("dilatednet", {"batch_norm": True}),
                       ("vgg16", {}), ("deeplab_v2", {"backbone": "vgg16_bn"})]:  # fmt: skip
        refused(name, "features.0.weight is (64, 3, 3, 3), not (4, 3, 3, 3)", width=1 / 16,
                backbone_weights=str(tmp_path / "vgg16_bn.safetensors"), **args)  # fmt: skip
    net = classic("vgg16", 5, backbone_weights=str(tmp_path / "vgg16_bn.safetensors")).net.eval()
    assert torch.equal(net.backbone.stage(0)(x), features[0][:6](x))
    assert all(torch.equal(net.backbone.state_dict()[key], value) for key, value in state.items())
    refused("fcn8s", "vgg16_bn.safetensors is of another network", "lacks conv1.weight", backbone="resnet18",
            backbone_weights=str(tmp_path / "vgg16_bn.safetensors"))  # fmt: skip
    refused("fcn8s", "no file", backbone_weights=str(tmp_path / "nowhere.pth"))


BLOCK = {"conv1": "reduce.conv", "bn1": "reduce.bn", "conv2": "conv3x3.conv", "bn2": "conv3x3.bn",
         "conv3": "increase.conv", "bn3": "increase.bn", "downsample.0": "shortcut.conv",
         "downsample.1": "shortcut.bn"}  # fmt: skip


def nested(key: str, prefix: str, shortcut: str, branch: str) -> str:
    """A key of ours in the layout that names layers from 1 to 5 and blocks from 1."""
    head, _, rest = key.partition(".")
    if head == "aspp":
        return f"{prefix}aspp.{branch}{rest}"
    parts = rest.split(".")
    if parts[0] in ("conv1", "bn1"):
        return f"{prefix}layer1.conv1.{parts[0][:-1]}.{parts[1]}"
    own = BLOCK[".".join(parts[2:-1])].replace("shortcut", shortcut)
    return f"{prefix}layer{int(parts[0][5:]) + 1}.block{int(parts[1]) + 1}.{own}.{parts[-1]}"


def flat(key: str) -> str:
    """The same in the layout that keeps torchvision's names."""
    return "Scale." + key.removeprefix("backbone.").replace("aspp.", "layer5.conv2d_list.")


@pytest.mark.parametrize("layout", ["flat", "nested", "old nested"])
def test_caffe_conversions_of_deeplab_load(layout: str, tmp_path: Path) -> None:
    rename = {
        "flat": flat,
        "nested": lambda key: nested(key, "base.", "shortcut", "c"),
        "old nested": lambda key: nested(key, "scale.", "proj", "stages.c"),
    }[layout]
    own = {"width": 1 / 16, "backbone": "resnet50", "caffe": True}
    torch.manual_seed(4)
    source = classic("deeplab_v2", 5, **own).net.eval()
    state = {key: value for key, value in source.state_dict().items() if "num_batches" not in key}
    made = {rename(key): value for key, value in state.items()}
    assert {renamed(key): key for key in made} == {key: rename(key) for key in state}
    assert {"flat": "Scale.layer1.0.downsample.0.weight", "nested": "base.layer2.block1.shortcut.conv.weight",
            "old nested": "scale.layer2.block1.proj.conv.weight"}[layout] in made  # fmt: skip
    torch.save(made, tmp_path / "deeplab.pth")
    found = classic("deeplab_v2", 5, conversion=str(tmp_path / "deeplab.pth"), **own)
    x = images(1, 3, 48, 48)
    assert torch.equal(found.net.eval()(x), source(x))
    assert (found.preprocess["order"], found.preprocess["scale"]) == ("bgr", 255)
    refused("deeplab_v2", "aspp.0.weight is (5,", outputs=4, conversion=str(tmp_path / "deeplab.pth"), **own)
    refused("deeplab_v2", "asks for `caffe: true`", width=1 / 16, conversion=str(tmp_path / "deeplab.pth"))


def test_deeplab_takes_the_maximum_over_scales() -> None:
    model = classic("deeplab_v2", 5, width=1 / 8, backbone="resnet18", scales=[0.5, 1]).net.eval()
    x = images(1, 3, 64, 80)
    one = classic("deeplab_v2", 5, width=1 / 8, backbone="resnet18").net.eval()
    one.load_state_dict(model.state_dict())
    low = one(F.interpolate(x, (32, 40), mode="bilinear", align_corners=False))
    low = F.interpolate(low, (8, 10), mode="bilinear", align_corners=False)
    assert (low > one(x)).any()
    assert (low < one(x)).any()
    assert torch.equal(model(x), torch.maximum(one(x), low))


def test_deeplab_is_strided_and_dilated_as_the_paper_has_it() -> None:
    with torch.device("meta"):
        caffe, usual = (classic("deeplab_v2", 5, caffe=caffe).net.backbone for caffe in (True, False))
        vgg = classic("deeplab_v2", 5, backbone="vgg16").net
    for net, strides in ((caffe, ((2, 2), (1, 1))), (usual, ((1, 1), (2, 2)))):
        assert (net.layer2[0].conv1.stride, net.layer2[0].conv2.stride) == strides
        for layer, dilation in ((net.layer2, 1), (net.layer3, 2), (net.layer4, 4)):
            assert {block.conv2.dilation for block in layer} == {(dilation, dilation)}
    assert caffe.maxpool.ceil_mode
    assert not usual.maxpool.ceil_mode
    assert [m.stride for m in vgg.backbone.features if isinstance(m, nn.MaxPool2d)] == [2, 2, 2, 1, 1]
    assert [branch[0].dilation for branch in vgg.aspp] == [(r, r) for r in (6, 12, 18, 24)]


def test_the_context_module_begins_as_the_identity() -> None:
    net = classic("dilatednet", 5, width=1 / 16).net
    x = torch.randn(1, 5, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net.context(x), x.relu(), rtol=0, atol=1e-6)


def test_unpooling_is_torchs() -> None:
    x = torch.randn(2, 3, 7, 6, generator=torch.Generator().manual_seed(0))
    made, places = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(unpool(made, places, x.shape[2:]), F.max_unpool2d(made, places, 2, output_size=x.shape[2:]))
    assert unpool(made.bfloat16(), places, x.shape[2:]).dtype == torch.bfloat16
    exact = made.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: unpool(values, places, x.shape[2:]), exact)


def test_the_random_field_sees_the_picture_and_the_bases_own_scores() -> None:
    args = {"width": 1 / 8}
    model = build("classic", "crf_rnn", NAMES, args={"base": "unet", "base_args": args, "steps": 2})
    torch.testing.assert_close(model.net.base.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))  # type: ignore[union-attr, operator]
    x = images(1, 3, 21, 30).requires_grad_()
    base, field = model.net.base, model.net.field  # type: ignore[union-attr]
    assert torch.equal(model(x), field(base(x), x))  # type: ignore[operator]
    scores = base(x).detach()  # type: ignore[operator]
    assert not torch.equal(model(x).argmax(1), scores.argmax(1))
    slope = torch.autograd.grad(field(scores, x).square().sum(), x)[0]  # type: ignore[operator]
    assert slope.abs().max() > 0


def test_grey_images_and_their_statistics() -> None:
    for name, own in (("unet", {"width": 1 / 8}), ("lenet", {}), ("resnet20", {}), ("vgg16", {"width": 1 / 16})):
        model = build("classic", name, NAMES, args={**own, "channels": 1})
        assert model(images(2, 1, 28, 28)).shape[:2] == (2, 5)


def test_faults() -> None:
    refused("enett", "no network 'enett' (did you mean 'enet'?)", "it has: fcn8s, segnet")
    refused("enet", "no argument 'widht' (did you mean 'width'?)", "its arguments: width", widht=1)
    refused("fcn8s", "no backbone 'resnet51' (did you mean 'resnet50'?)", "vgg16", backbone="resnet51")
    refused("deeplab_v2", "no backbone 50", backbone=50)
    refused("deeplab_v2", "rates must be a list of whole numbers above 0, not [0.5]", rates=[0.5])
    refused("deeplab_v2", "scales must be a list of numbers above 0, not []", scales=[])
    refused("deeplab_v2", "caffe is for resnet50 and resnet101, not resnet18", backbone="resnet18", caffe=True)
    refused("deeplab_v2", "caffe must be true or false, not 1", caffe=1)
    refused("unet", "groups must be a whole number of at least 1, not 0", groups=0)
    refused("crf_rnn", "no base 'lenet'", "there are: fcn8s", base="lenet")
    refused("crf_rnn", "no argument 'widths'", base_args={"widths": 2})
    refused("crf_rnn", "at least 2 outputs", outputs=1)
    refused("crf_rnn", "base_args must be the base's arguments by name, not 3", base_args=3)
    refused("segnet", "backbone_weights must be the path of a file, not 3", backbone_weights=3)
    for width in (0, -1, "1", True, float("nan")):
        for name in NETWORKS:
            refused(name, f"classic {name}: width must be a number above 0, not {width!r}", width=width)


def test_without_torchvision_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    refused("fcn8s", "pip install 'segaudit[models]'")
    refused("icnet", "pip install 'segaudit[models]'")
    assert classic("enet", 5).net(images(1, 3, 32, 32)).shape == (1, 5, 32, 32)


def test_each_argument_that_is_said_to_be_there_is_there() -> None:
    text = " ".join(str(classic.__doc__).split()).partition("Also: ")[2].partition("Source")[0]
    told = re.findall(r"((?:`\w+`(?:, | and )?)+) ?(?:of the image )?\(([^):]+)", text)
    assert len(told) >= 6
    for arguments, where in told:
        for name in [name for name in NETWORKS if re.search(rf"\b{name}\b", where)]:
            own = inspect.signature(NETWORKS[name]).parameters
            assert set(re.findall(r"`(\w+)`", arguments)) <= set(own), (name, arguments)


@pytest.mark.parametrize(("key", "value", "ok"), [("spatial_weight", 0, True), ("colour_width", 0, False)])
def test_a_kernel_may_weigh_nothing_but_not_be_of_no_width(key: str, value: float, ok: bool) -> None:
    args = {"base": "enet", "width": 0.25, key: value}
    if ok:
        classic("crf_rnn", 3, **args)
    else:
        with pytest.raises(UserError, match=f"^classic crf_rnn: {key} must be a number above 0, not 0$"):
            classic("crf_rnn", 3, **args)
