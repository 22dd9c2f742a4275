"""Models that are only a function: what they may give, who may attack them, and what they are told otherwise."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit_kit import audit, by_name, content, save_spec, small
from segaudit import cli
from segaudit.attacks.fgsm import fgsm
from segaudit.attacks.mifgsm import mifgsm
from segaudit.attacks.pgd import pgd
from segaudit.attacks.square import square
from segaudit.audit import build as audit_build
from segaudit.metrics.confusion import accuracy
from segaudit.models import build
from segaudit.models.ensemble import Ensemble
from segaudit.models.fast import Fast
from segaudit.models.opaque import has_gradient
from segaudit.models.python import python
from segaudit.nn.passes import count_passes
from segaudit.report import summary, tables
from segaudit.rng import ImageStreams
from segaudit.types import NEVER, Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("red", "green", "blue")
FUNCTIONS = '''
from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

SEEN = []


class Session:
    """Like a runtime's: it cannot be copied, and takes NumPy arrays alone."""

    def __init__(self, sharp):
        self.lock, self.sharp = threading.Lock(), sharp

    def run(self, x):
        SEEN.append(x)
        if type(x) is not np.ndarray or not x.flags["C_CONTIGUOUS"]:
            raise TypeError("only contiguous arrays")
        with self.lock:
            blurred = sum(np.roll(x, (i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
        x *= 0
        return self.sharp * blurred


def logits(sharp=10.0):
    return Session(sharp).run


def probabilities():
    def softmax(x: Tensor):
        SEEN.append(x)
        made = torch.from_numpy(logits()(x.numpy())).softmax(1)
        x.zero_()
        return made
    return softmax


def classes(kind="int64"):
    return lambda x: Session(1).run(x).argmax(1).astype(kind)


def vector(kind="logits"):
    def whole(x: torch.Tensor) -> torch.Tensor:
        means = 10 * x.mean((2, 3))
        return means if kind == "logits" else means.argmax(1)
    return whole


def convolution():
    def mixed(x: Tensor):
        return torch.nn.functional.conv2d(x, torch.eye(3)[:, :, None, None] + 0.123)
    return mixed


def wrong(how):
    gives = {
        "nothing": lambda x: None,
        "one row": lambda x: x[0],
        "another class": lambda x: np.full((len(x), 4, 4), 7),
        "whole scores": lambda x: (255 * x).astype(np.uint8),
        "an error": lambda x: x.no_such,
    }
    return gives[how]
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(FUNCTIONS)
    return tmp_path / "service.py"


def images(count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(count, 3, 3, 4, generator=generator, dtype=dtype) * 0.5 + 0.25
    return blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)


def blurred(x: Tensor) -> Tensor:
    return sum((x.roll((i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)), torch.zeros(())) / 9


def made_of(file: Path, function: str, **spec: Any) -> Segmenter:
    return build.build("python", f"{file}:{function}", NAMES, **spec)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_probabilities_and_classes_become_a_segmenter_s_scores(file: Path, dtype: torch.dtype) -> None:
    x = images(dtype=dtype)
    kept = x.clone(memory_format=torch.channels_last)
    expected = {
        "logits": 10 * blurred(x),
        "probabilities": (10 * blurred(x)).softmax(1),
        "classes": torch.nn.functional.one_hot(blurred(x).argmax(1), 3).movedim(-1, 1).to(dtype),
    }
    for name, scores in expected.items():
        found = made_of(file, name)(kept)
        assert found.dtype == dtype
        torch.testing.assert_close(found, scores, rtol=0, atol=1e-5)
        assert torch.equal(kept, x)  # what the function does to its own array is its own affair
    for kind in ("uint8", "int32", "uint16"):
        assert torch.equal(made_of(file, "classes", args={"kind": kind})(x), expected["classes"])


def test_preprocess_outputs_and_class_map_are_the_spec_s(file: Path) -> None:
    x = images()
    plain = made_of(file, "logits")(x)
    bgr = made_of(file, "logits", preprocess={"order": "bgr", "scale": 255, "mean": 3.0, "stride": 7})
    assert bgr(x).shape == plain.shape
    torch.testing.assert_close(made_of(file, "logits", preprocess={"order": "bgr"})(x), plain.flip(1))
    two = build.build("python", f"{file}:classes", ("warm", "cold"), outputs=3, class_map={0: 0, 1: 0, 2: 1})
    assert torch.equal(two(x).argmax(1), (blurred(x).argmax(1) == 2).long())


def test_a_classifier_may_give_scores_or_classes(file: Path) -> None:
    x = images(5)
    for args in ({}, {"kind": "classes"}):
        found = made_of(file, "vector", args=args)(x)
        assert found.shape == (5, 3, 1, 1)
        assert torch.equal(found.argmax(1).flatten(), x.mean((2, 3)).argmax(1))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("nothing", "must give an array of scores, one row an image, not NoneType"),
        ("one row", r"one row an image, not of shape \(3, 24, 32\)"),
        ("another class", "predicts class 7, but its classes are 0 to 2; `outputs` says how many there are"),
        ("whole scores", r"must give classes N x H x W, or scores as floating-point numbers, not \(2, 3, 24, 32\)"),
        ("an error", r"service.py:\d+: AttributeError: 'numpy.ndarray' object has no attribute 'no_such'"),
    ],
)
def test_what_is_wrong_with_a_function_is_said_in_one_line(file: Path, how: str, says: str) -> None:
    model = made_of(file, "wrong", args={"how": how})
    with pytest.raises(UserError, match=f"^model '{file}:wrong'.*{says}") as caught:
        model(images())
    assert "\n" not in str(caught.value)


def test_neither_a_module_nor_a_function_is_refused(file: Path) -> None:
    file.write_text("def number():\n    return 5\n")
    with pytest.raises(UserError, match=r"returned a int, not a torch\.nn\.Module or a function$"):
        python(f"{file}:number", 3)


def test_the_cheap_copy_asks_the_same_function(file: Path) -> None:
    model, x = made_of(file, "logits"), images()
    assert not has_gradient(model)
    fast = Fast(model, "bf16", x[:1])
    assert not has_gradient(fast)
    assert not has_gradient(Ensemble([model]))
    assert torch.equal(fast(x), model(x))
    mixed = made_of(file, "convolution")
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(torch.nn.functional.conv2d(x, torch.eye(3)[:, :, None, None] + 0.123).float(), mixed(x))
    assert torch.equal(Fast(mixed, "bf16", x[:1])(x), mixed(x))  # bf16 is for networks: a function is asked as it is
    assert has_gradient(build.build("tiny", "unet", NAMES))
    with pytest.raises(TypeError):
        copy.deepcopy(threading.Lock())  # so that the function could not have been copied


@pytest.mark.parametrize("attack", [pgd, mifgsm])
def test_a_gradient_is_refused_and_not_taken_for_zero(file: Path, attack: Any) -> None:
    model, x = made_of(file, "logits"), images()
    labels = model(x).argmax(1)
    says = f"^model '{file}:logits' has no gradient: attack it with square, or transfer images from another model$"
    for seen in (model, Fast(model, "fp32", x[:1]), Ensemble([model, build.build("tiny", "unet", NAMES)])):
        with pytest.raises(UserError, match=says):
            attack(seen, x, labels, rng=ImageStreams(0, "ab"), eps=0.03)


@pytest.mark.parametrize("function", ["logits", "probabilities", "classes"])
def test_square_needs_no_more_than_classes(file: Path, function: str) -> None:
    model, x = made_of(file, function), images()
    labels = model(x).argmax(1)
    with count_passes(model) as passes:
        made = square(model, x, labels, rng=ImageStreams(0, "ab"), eps=0.06, steps=60)
    assert passes.backwards == 0
    assert (made - x).abs().max() <= 0.06 * (1 + 1e-5)
    noise = (x + 0.06 * ImageStreams(0, "ab").normal(x).sign()).clamp(0, 1)
    kept, by_noise = (float((model(seen).argmax(1) == labels).double().mean()) for seen in (made, noise))
    assert kept < by_noise - 0.15


class Given(Segmenter):
    """A model whose logits are told."""

    class_names = NAMES

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits * images.mean()


def test_an_ensemble_is_the_mean_of_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    each = [torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) * 5 for _ in range(3)]
    one = torch.ones(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    ensemble = Ensemble([Given(logits) for logits in each])
    mean = sum((logits.softmax(1) for logits in each), torch.zeros(())) / 3
    torch.testing.assert_close(ensemble(one).exp(), mean)
    torch.testing.assert_close(ensemble(one).softmax(1), mean)
    slope = torch.autograd.grad(ensemble(one)[:, 0].sum(), one, retain_graph=True)[0]
    by_hand = sum(((logits * one.mean()).softmax(1) for logits in each), torch.zeros(())) / 3
    torch.testing.assert_close(slope, torch.autograd.grad(by_hand.log()[:, 0].sum(), one)[0])
    torch.testing.assert_close(Ensemble([Given(each[0])])(one).softmax(1), each[0].softmax(1))


def test_a_class_that_one_model_lacks_is_left_to_the_others() -> None:
    lacking, having = torch.tensor([1.0, 0.0, NEVER]), torch.tensor([0.0, 1.0, 4.0])
    one = torch.ones(1, 3, 1, 1)
    both = Ensemble([Given(logits.view(1, 3, 1, 1)) for logits in (lacking, having)])(one)
    torch.testing.assert_close(both.softmax(1)[0, 2], having.softmax(0)[2].view(1, 1) / 2)
    neither = Ensemble([Given(lacking.view(1, 3, 1, 1))] * 2)(one)
    assert neither.isfinite().all()
    assert neither[0, 2] < 0.9 * NEVER


def test_models_of_other_classes_are_no_ensemble() -> None:
    other = Given(torch.zeros(1, 3, 1, 1))
    other.class_names = ("a", "b", "c")
    for models in ([], [other, Given(torch.zeros(1, 3, 1, 1))]):
        with pytest.raises(UserError, match="an ensemble must be of one model or more, all with the same classes"):
            Ensemble(models)


def service(file: Path, function: str = "logits") -> dict[str, Any]:
    return {"source": "python", "name": f"{file}:{function}", "label": "service"}


def network(folder: Path) -> dict[str, Any]:
    return {"source": "python", "name": f"{folder}/user_net.py:build", "label": "net"}


SQUARE = {"name": "square", "steps": 30}


@pytest.mark.parametrize("function", ["logits", "classes"])
def test_a_function_is_audited_by_square_and_by_images_of_a_network(file: Path, tmp_path: Path, function: str) -> None:
    attacks = [{"name": "sea", "steps": 4}, {"name": "pgd", "steps": 5}, SQUARE]
    models = [network(tmp_path), service(file, function)]
    spec = small(tmp_path, models=models, attacks=attacks, eps=["40/255"], transfer=True)
    found = {key[:1] + key[2:4]: records for key, records in by_name(audit(spec, tmp_path / "out")).items()}
    own = {attack for model, _, attack in found if model == "service"}
    direct = {(threat, attack) for model, threat, attack in found if model == "service" and "transfer" not in threat}
    assert direct == {("none", "none"), ("white-box", "square(steps=30)")}
    assert ("service", "transfer:net", "pgd(steps=5)") in found
    assert ("net", "transfer:service", "square(steps=30)") in found
    assert ("net", "transfer:service", "pgd(steps=5)") not in found
    assert len(own) > 3  # what the ensemble is made of is tried on it too
    clean, searched = found["service", "none", "none"], found["service", "white-box", "square(steps=30)"]
    assert accuracy(clean.counts) > 0.9
    assert accuracy(searched.counts) < accuracy(clean.counts) - 0.2
    assert accuracy(found["service", "transfer:net", "pgd(steps=5)"].counts) < accuracy(clean.counts)
    assert set(searched.forwards) == {31.0}
    assert set(searched.backwards) == {0.0}


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the command line in an empty working folder: exit status, and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as exit:
            cli.main(list(arguments))
        torch.set_flush_denormal(False)
        return exit.value.code, capfd.readouterr().err

    return run


def test_attacks_that_need_a_gradient_are_refused_before_any_work(file: Path, tmp_path: Path, call: Any) -> None:
    small(tmp_path)
    says = (
        "segaudit: model 'service' has no gradient, which attack 'pgd' needs: attack it with square, or transfer "
        "images from another model (`transfer: true`)\n"
    )
    for models, transfer in (
        ([service(file)], False),
        ([service(file)], True),
        ([network(tmp_path), service(file)], False),
    ):
        over = {"models": models, "transfer": transfer, "attacks": [SQUARE, "pgd"]}
        assert call("run", str(save_spec(tmp_path / "spec.yaml", content(tmp_path, **over)))) == (2, says)
    assert not (tmp_path / "runs").exists()


def test_one_picture_is_attacked_by_square_and_refused_to_pgd(file: Path, tmp_path: Path, call: Any) -> None:
    small(tmp_path)
    spec = save_spec(tmp_path / "spec.yaml", content(tmp_path, models=[service(file)], attacks=[SQUARE]))
    picture = str(tmp_path / "images" / "p00.png")
    code, said = call("attack", picture, "--spec", str(spec), "--attack", "square")
    assert (code, said) == (0, "")
    code, said = call("attack", picture, "--spec", str(spec), "--attack", "pgd")
    assert code == 2
    mend = "has no gradient: attack it with square, or transfer images from another model"
    assert said == f"segaudit: model '{file}:logits' {mend}\n"


def three(folder: Path) -> list[dict[str, Any]]:
    return [network(folder) | {"label": f"net{i}", "args": {"seed": i}} for i in range(3)]


def test_each_model_is_tried_on_images_made_on_all_the_others_together(tmp_path: Path) -> None:
    pgd = {"name": "pgd", "steps": 4}
    spec = small(tmp_path, models=three(tmp_path), attacks=[pgd], eps=["16/255"], transfer={"ensemble": True})
    found = {(key[0], key[2]): records for key, records in by_name(audit(spec, tmp_path / "out")).items()}
    assert {threat for _, threat in found} == {"none", "white-box", "transfer:ensemble"} | {
        f"transfer:net{i}" for i in range(3)
    }
    for i in range(3):
        clean, made = found[f"net{i}", "none"], found[f"net{i}", "transfer:ensemble"]
        assert accuracy(made.counts) < accuracy(clean.counts)
        assert set(made.forwards) == {8.0}  # each of the two others, at each of the four steps
        assert set(made.backwards) == {8.0}
        assert made.norms.linf.max() <= 16 / 255 + 1e-6


def test_the_images_of_an_ensemble_are_those_of_the_ensemble_class(tmp_path: Path) -> None:
    spec = small(tmp_path, models=three(tmp_path), attacks=["fgsm"], eps=["16/255"], transfer={"ensemble": True})
    found = audit(spec.model_copy(update={"keep": True}), tmp_path / "out")
    data = audit_build.dataset(spec.data)
    nets = [audit_build.model(model, data.class_names) for model in spec.models]
    batch = data.batch(data.ids)
    made = fgsm(Ensemble(nets[1:]), batch.images, batch.labels, rng=ImageStreams(0, batch.ids), eps=16 / 255)
    with torch.no_grad():
        right = (nets[0](made).argmax(1) == batch.labels).flatten(1).sum(1)
    records = by_name(found)["net0", "none", "transfer:ensemble", "fgsm", 16 / 255]
    assert np.abs(records.counts.intersection.sum(1) - right.numpy()).max() <= 3  # but for the float16 grid


def test_an_ensemble_is_a_source_and_no_target(tmp_path: Path) -> None:
    spec = small(tmp_path, models=three(tmp_path), attacks=["fgsm"], eps=["16/255"], transfer={"ensemble": True})
    found = audit(spec, tmp_path / "out")
    (matrix,) = tables.transfers(summary.summarise(found), "miou")
    assert matrix.sources == ["net0", "net1", "net2", "ensemble"]
    assert matrix.targets == ["net0", "net1", "net2"]
    assert all(("ensemble", target) in matrix.values for target in matrix.targets)


def test_a_model_without_a_gradient_is_in_no_ensemble(file: Path, tmp_path: Path) -> None:
    models = [*three(tmp_path)[:2], service(file)]
    spec = small(tmp_path, models=models, attacks=["fgsm"], eps=["40/255"], transfer={"ensemble": True})
    found = by_name(audit(spec, tmp_path / "out"))
    assert [key[0] for key in found if key[2] == "transfer:ensemble"] == ["service"]  # the nets have one other each


@pytest.mark.parametrize(
    ("transfer", "count", "says"),
    [
        ({"ensemble": True}, 2, "transfer: an ensemble of the other models takes three models or more"),
        ({"ensembel": True}, 3, r"unknown key 'ensembel' \(did you mean 'ensemble'\?\); known: each, ensemble"),
        ("yes", 3, r"write true, or \{ensemble: true\}"),
    ],
)
def test_a_wrong_transfer_is_refused(tmp_path: Path, transfer: Any, count: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        small(tmp_path, models=three(tmp_path)[:count], transfer=transfer)


def test_transfer_is_written_as_before_and_read_back(tmp_path: Path) -> None:
    for transfer, each, ensemble in ((True, True, False), (False, False, False), ({"ensemble": True}, True, True)):
        spec = small(tmp_path, models=three(tmp_path), transfer=transfer)
        assert (spec.transfer.each, spec.transfer.ensemble, bool(spec.transfer)) == (each, ensemble, each)
        assert type(spec).model_validate(spec.model_dump(mode="json")) == spec


def test_a_network_that_detaches_is_said_in_one_line(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "cut.py").write_text(
        "import torch\n\n\nclass Cut(torch.nn.Module):\n    def forward(self, x):\n        return x.detach() * 9\n"
    )
    model = {"source": "python", "name": f"{tmp_path}/cut.py:Cut"}
    with pytest.raises(UserError, match=r"^the model's logits have no gradient"):
        audit(small(tmp_path, models=[model], attacks=["fgsm"]), tmp_path / "out")
