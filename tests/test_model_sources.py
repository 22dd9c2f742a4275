"""From a model spec's words to a Segmenter: every source of networks, and what people write wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.models import build, weights
from segaudit.models.huggingface import preprocessing
from segaudit.types import Segmenter, UserError

NAMES = ("sky", "road", "car", "person", "void-like")
MEAN, STD = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
EXAMPLE = Path(__file__).parent.parent / "examples" / "my_net.py"


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def works(model: Segmenter, height: int = 33, width: int = 47, classes: int = 5) -> None:
    """Frozen, in eval mode, logits at the image's size, and a gradient to every image."""
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    x = images(2, 3, height, width).requires_grad_()
    logits = model(x)
    assert logits.shape == (2, classes, height, width)
    slope = torch.autograd.grad(F.cross_entropy(logits, logits.argmin(1)), x)[0]
    assert slope.isfinite().all()
    assert slope.abs().amax((1, 2, 3)).min() > 0


def refused(source: str, name: str, *parts: str, names: tuple[str, ...] = NAMES, **spec: Any) -> None:
    """Building ends in one line that holds every part."""
    with pytest.raises(UserError) as caught:
        build.build(source, name, names, **spec)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_torchvision_nets_are_normalised_and_have_no_auxiliary_head(name: str) -> None:
    torch.manual_seed(0)
    model = build.build("torchvision", name, NAMES, args={} if name[0] == "l" else {"aux_loss": True})
    works(model)
    assert not any("aux" in key for key in model.state_dict())
    x = images(1, 3, 32, 48)
    torch.testing.assert_close(model(x), model.net((x - MEAN) / STD)["out"], rtol=0, atol=1e-5)


def test_torchvision_weights_may_hold_the_auxiliary_head(tmp_path: Path) -> None:
    from torchvision.models import get_model

    name = "deeplabv3_mobilenet_v3_large"
    torch.manual_seed(0)
    source = get_model(name, weights=None, weights_backbone=None, num_classes=5, aux_loss=True).eval()
    torch.save({"model": source.state_dict()}, tmp_path / "deeplab.pth")
    model = build.build("torchvision", name, NAMES, weights=str(tmp_path / "deeplab.pth"))
    x = images(1, 3, 32, 48)
    torch.testing.assert_close(model(x), source((x - MEAN) / STD)["out"], rtol=0, atol=1e-5)
    refused("torchvision", "lraspp_mobilenet_v3_large", "of another network", weights=str(tmp_path / "deeplab.pth"))


def test_torchvision_faults() -> None:
    refused("torchvision", "fcn_resnet5O", "did you mean 'fcn_resnet50'?")
    refused(
        "torchvision", "lraspp_mobilenet_v3_large", "no argument 'num_class'", "'num_classes'", args={"num_class": 3}
    )
    refused("torchvision", "fcn_resnet50", "expected value 21 but got 5", args={"weights": "DEFAULT"})


@pytest.mark.parametrize("name", ["Unet", "FPN"])
def test_smp_nets_are_normalised_and_padded(name: str) -> None:
    torch.manual_seed(0)
    model = build.build("smp", name, NAMES, args={"encoder_name": "mobilenet_v2"})
    works(model)
    x = images(1, 3, 32, 64)
    torch.testing.assert_close(model(x), model.net((x - MEAN) / STD), rtol=0, atol=1e-5)


def test_smp_takes_outputs_from_the_spec_before_the_data() -> None:
    args = {"encoder_name": "mobilenet_v2", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    model = build.build("smp", "Unet", NAMES, args=args, outputs=7, class_map={5: 0, 6: None})
    assert model.net(images(1, 3, 32, 32)).shape[1] == 7
    works(model)
    works(build.build("smp", "Unet", NAMES[:2], args=args, outputs=1), classes=2)
    with pytest.raises(UserError, match="has 6 outputs, not 5"):
        build.build("smp", "Unet", NAMES, args={**args, "classes": 6})(images(1, 3, 32, 32))


def test_smp_faults() -> None:
    refused("smp", "UNet", "did you mean 'Unet'?")
    refused("smp", "Unet", "no argument 'encoder'", args={"encoder": "resnet18"})
    refused("smp", "Unet", "resnet19", "KeyError", args={"encoder_name": "resnet19"})
    refused("smp", "Unet", "Unknown model (resnet19)", args={"encoder_name": "tu-resnet19"})
    refused("smp", "Unet", "no argument 'name'", args={"name": "Unet"})


@pytest.mark.parametrize(("source", "module"), [("smp", "segmentation_models_pytorch"), ("torchvision", "torchvision"),
                                                ("huggingface", "transformers")])  # fmt: skip
def test_a_missing_extra_says_what_to_install(source: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    refused(source, "x", "pip install 'segaudit[models]'")


def test_a_source_or_preprocess_key_that_is_not_there_has_a_suggestion() -> None:
    refused("torchvison", "fcn_resnet50", "did you mean 'torchvision'?")
    refused("python", f"{EXAMPLE}:build", "no 'sdt' (did you mean 'std'?)", outputs=12, preprocess={"sdt": 1})


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SegFormer as save_pretrained leaves it."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("segformer")
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]).save_pretrained(folder)
    return folder


def altered(folder: Path, into: Path, **config: Any) -> Path:
    """A copy of a folder; keyword arguments are new contents of `name.json`."""
    into.mkdir()
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())
    for name, content in config.items():
        (into / f"{name}.json").write_text(json.dumps(content))
    return into


def test_huggingface_loads_a_folder_with_its_preprocessing(segformer: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

    model = build.build("huggingface", str(segformer), NAMES)
    assert capfd.readouterr() == ("", "")
    works(model)
    net = SegformerForSemanticSegmentation.from_pretrained(segformer).eval()
    x = (images(1, 3, 64, 96) * 255).round() / 255
    processor = SegformerImageProcessor.from_pretrained(segformer, do_resize=False)
    inputs = processor((x[0] * 255).byte(), return_tensors="pt")["pixel_values"]
    quarter = net(inputs).logits
    assert quarter.shape == (1, 5, 16, 24)
    expected = F.interpolate(quarter, (64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)


def test_huggingface_half_precision_becomes_float32(segformer: Path, tmp_path: Path) -> None:
    config = json.loads((segformer / "config.json").read_text())
    folder = altered(segformer, tmp_path / "half", config={**config, "dtype": "float16"})
    state = {key: value.half() for key, value in weights.read(folder / "model.safetensors")[0].items()}
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").unlink()
    model = build.build("huggingface", str(folder), NAMES)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    works(model)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"image_mean": [0.5], "image_std": [0.2], "do_normalize": False, "rescale_factor": 1 / 255}, {"scale": 1.0}),
        ({"image_mean": [0.5], "image_std": [0.2], "do_rescale": False}, {"scale": 255, "mean": [0.5], "std": [0.2]}),
        ({"do_rescale": True, "rescale_factor": 2 / 255, "do_flip_channel_order": True}, {"scale": 2, "order": "bgr"}),
    ],
)
def test_a_preprocessor_config_in_our_words(config: dict[str, Any], expected: dict[str, Any]) -> None:
    assert preprocessing(config) == expected


def test_huggingface_faults(segformer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused("huggingface", "./nowhere", "no folder nowhere")
    refused("huggingface", str(segformer), "has 5 labels", "`outputs: 5` and a class_map", names=NAMES[:3])
    works(build.build("huggingface", str(segformer), NAMES[:3], outputs=5, class_map={3: 0, 4: None}), classes=3)

    pickled = altered(segformer, tmp_path / "pickled")
    torch.save(weights.read(pickled / "model.safetensors")[0], pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    refused("huggingface", str(pickled), "only safetensors are loaded")
    refused("huggingface", str(pickled), "only safetensors are loaded", args={"use_safetensors": False})

    damaged = altered(segformer, tmp_path / "damaged")
    damaged.joinpath("model.safetensors").write_bytes((segformer / "model.safetensors").read_bytes()[:5000])
    refused("huggingface", str(damaged), "damaged", "Safetensor")

    config = json.loads((segformer / "config.json").read_text())
    other = altered(segformer, tmp_path / "other", config={"model_type": "bert"})
    refused("huggingface", str(other), "BertConfig")
    wider = altered(segformer, tmp_path / "wider", config={**config, "decoder_hidden_size": 24})
    refused("huggingface", str(wider), "huggingface", "RuntimeError")
    deeper = altered(segformer, tmp_path / "deeper", config={**config, "depths": [1, 2]})
    refused("huggingface", str(deeper), "lacks", "`num_labels`")
    assert capfd.readouterr() == ("", "")


def test_huggingface_gives_a_new_head_where_it_is_asked_for(segformer: Path) -> None:
    args = {"num_labels": 3, "ignore_mismatched_sizes": True}
    works(build.build("huggingface", str(segformer), NAMES[:3], args=args), classes=3)


def test_huggingface_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(
        "huggingface", "nvidia/not-there", "the hub cannot be reached", "save_pretrained", args={"cache_dir": tmp_path}
    )


USER = """
import torch
from torch import nn
from segaudit.types import Segmenter

def build(width, outputs=5):
    return nn.Conv2d(3, outputs, width, padding=width // 2)

Net = nn.Sequential

def fails():
    layers = [8]
    return nn.Conv2d(3, layers[3], 3)

def fails_deep():
    return nn.Conv2d(3, 5, 3, padding="none")

def number():
    return 5

class Own(Segmenter):
    class_names = ("a", "b", "c", "d", "e")
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 5, 1)
    def forward(self, images):
        return self.net(images)

class Nameless(Own):
    class_names = ()
"""


@pytest.fixture
def user(tmp_path: Path) -> str:
    path = tmp_path / "user_net.py"
    path.write_text(USER)
    return str(path)


def test_python_calls_a_function_of_a_file_with_the_args(user: str) -> None:
    torch.manual_seed(0)
    model = build.build("python", f"{user}:build", NAMES, args={"width": 3}, preprocess={"scale": 255, "order": "bgr"})
    works(model)
    x = images(1, 3, 6, 6)
    torch.testing.assert_close(model(x), model.net(x.flip(1) * 255))
    works(
        build.build("python", f"{user}:build", NAMES, args={"width": 1, "outputs": 6}, outputs=6, class_map={5: None})
    )


def test_python_takes_a_package_and_a_class() -> None:
    model = build.build(
        "python", "torch.nn:Conv2d", NAMES, args={"in_channels": 3, "out_channels": 5, "kernel_size": 1}
    )
    works(model)


def test_python_takes_a_segmenter_as_it_is(user: str) -> None:
    model = build.build("python", f"{user}:Own", NAMES)
    assert type(model).__name__ == "Own"
    works(model)
    refused("python", f"{user}:Own", "5 class_names", "3 classes", names=NAMES[:3])
    refused("python", f"{user}:Nameless", "0 class_names")
    refused("python", f"{user}:Own", "its own preprocess", preprocess={"scale": 255})
    refused("python", f"{user}:Own", "its own outputs", outputs=5)


def test_python_faults(user: str, tmp_path: Path) -> None:
    lines = USER.splitlines()
    for function, error in [("fails", "IndexError: list index"), ("fails_deep", "ValueError: Invalid padding")]:
        last = next(i for i, line in enumerate(lines) if f"def {function}():" in line)
        line = next(i for i in range(last, len(lines)) if "return" in lines[i]) + 1
        refused("python", f"{user}:{function}", f"user_net.py:{line}: {error}")
    refused("python", f"{user}:number", "returned a int, not a torch.nn.Module")
    refused("python", f"{user}:biuld", "no function 'biuld' (did you mean 'build'?)")
    refused("python", f"{user}:build", "needs the argument 'width'")
    refused("python", f"{user}:build", "no argument 'widht' (did you mean 'width'?)", args={"widht": 3})
    refused("python", "build", "file.py:function")
    refused("python", f"{tmp_path}/nowhere.py:build", "no file", "nowhere.py")
    refused("python", "no_such_package:build", "no_such_package does not import")
    (tmp_path / "broken.py").write_text("import torch\nraise OSError('no disk')\n")
    refused("python", f"{tmp_path}/broken.py:build", "broken.py does not import: OSError: no disk")


def test_preprocessing_is_the_specs_then_the_cards_then_the_sources(user: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    torch.manual_seed(0)
    card = {"model": {"preprocess": {"mean": [0.1, 0.2, 0.3], "scale": 2.0}}}
    weights.write(nn.Conv2d(3, 5, 1), path, card)
    spec: dict[str, Any] = {"args": {"width": 1}, "weights": str(path)}
    model = build.build("python", f"{user}:build", NAMES, **spec, preprocess={"mean": 0.5, "std": [0.25]})
    x = images(1, 3, 4, 4)
    torch.testing.assert_close(model(x), model.net((x * 2 - 0.5) / 0.25))
    model = build.build("python", f"{user}:build", NAMES, **spec)
    torch.testing.assert_close(model(x), model.net(x * 2 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)))


def test_the_example_is_audited_with_its_own_preprocessing() -> None:
    preprocess = {"order": "bgr", "scale": 255, "mean": [109.8, 108.0, 104.5], "stride": 8}
    names = tuple(f"class {i}" for i in range(11))
    torch.manual_seed(0)
    model = build.build("python", f"{EXAMPLE}:build", names, preprocess=preprocess, outputs=12, class_map={11: None})
    works(model, 30, 45, classes=11)
    x = images(1, 3, 32, 40)
    mean = torch.tensor(preprocess["mean"]).view(3, 1, 1)
    logits = model.net(x.flip(1) * 255 - mean)["out"]
    assert logits.shape == (1, 12, 8, 10)
    expected = F.interpolate(logits, (32, 40), mode="bilinear", align_corners=False)[:, :11]
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
