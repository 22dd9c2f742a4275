"""The masking diagnostics of whole audits: what masks is flagged, and what is sound is not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from audit_kit import CLASSES, audit, by_name, content
from masking_kit import EPS, spec_of, write_folder
from report_kit import Reader
from segaudit.attacks.pgd import pgd
from segaudit.audit import build
from segaudit.metrics import confusion
from segaudit.report.doubts import doubts
from segaudit.report.headline import headline
from segaudit.report.masking import diagnose
from segaudit.report.page import page
from segaudit.report.signs import Diagnostic
from segaudit.report.summary import summarise
from segaudit.report.verdict import verdicts
from segaudit.rng import ImageStreams
from segaudit.training.adversarial import adversarial
from segaudit.types import Batch, Results, Segmenter

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINED = [f"p{i:02d}" for i in range(16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("masking"))


@pytest.fixture(scope="module")
def masked(folder: Path) -> Results:
    """A net behind three defenses that hide its gradient, and behind one that does nothing."""
    names = [f"{folder}/masks.py:{name}" for name in ("quantised", "hot", "detached", "nothing")]
    return audit(spec_of(folder, defenses=["none", *names]), folder / "masked")


@pytest.fixture(scope="module")
def sound(folder: Path) -> Results:
    """A net, and an adversarially trained one."""
    save_file(robust(folder), folder / "robust.safetensors")
    source = {"source": "python", "label": "robust", "weights": f"{folder}/robust.safetensors"}
    models = [content(folder)["models"][0], {**source, "name": f"{folder}/user_net.py:plain"}]
    return audit(spec_of(folder, models=models), folder / "sound")


def robust(folder: Path) -> dict[str, Tensor]:
    """The weights of a small net after a short training by the recipe."""
    data = build.dataset(spec_of(folder, data={"name": "folder", "root": str(folder), "classes": CLASSES}).data)
    batch = data.batch(TRAINED)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in net:
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()

    class Own(Segmenter):
        class_names = tuple(CLASSES)

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.net(images)
            return logits

    model, attack = Own(), partial(pgd, eps=EPS, steps=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(100):
        part: Batch = batch[step % 4 * 4 : step % 4 * 4 + 4]
        optimizer.zero_grad()
        adversarial(model, part, rng=ImageStreams(step, part.ids), attack=attack).backward()
        optimizer.step()
    return {key: value.detach() for key, value in net.state_dict().items()}


def raised(found: list[Diagnostic], defense: str, model: str = "net") -> set[str]:
    return {d.name for d in found if d.raised and d.model == model and d.defense.endswith(defense)}


def test_each_masking_defense_is_flagged_by_what_should_see_it(masked: Results) -> None:
    found = diagnose(masked)
    assert raised(found, ":quantised") == {"zero gradient", "black box", "oblivious", "noise", "unbounded"}
    assert raised(found, ":hot") == {"black box", "oblivious", "noise", "unbounded"}
    assert raised(found, ":detached") == {"black box", "oblivious", "noise", "unbounded"}


def test_a_bare_net_and_a_defense_that_hides_nothing_raise_no_flag(masked: Results) -> None:
    found = diagnose(masked)
    for defense in ("none", ":nothing"):
        own = [d for d in found if d.defense.endswith(defense)]
        assert [d.line for d in own if d.raised] == []
        assert {d.name for d in own if d.raised is None} == {"steps"} | ({"transfer"} if defense == "none" else set())


def test_an_adversarially_trained_net_raises_no_flag(sound: Results) -> None:
    rows = {(row.model, row.attack): row for row in summarise(sound) if row.eps == EPS}
    weak, strong = (rows[model, "pgd(steps=10)"].miou for model in ("net", "robust"))
    assert strong > weak + 0.15
    assert strong > 0.5
    found = diagnose(sound)
    assert [d.line for d in found if d.raised] == []
    assert {d.name for d in found if d.raised is None} == {"steps", "transfer"}
    assert not any("masked" in text or "masks" in text for text in doubts(sound, summarise(sound)))


def test_the_numbers_are_those_of_the_records_on_the_same_images(masked: Results) -> None:
    (d,) = [d for d in diagnose(masked) if d.name == "black box" and d.defense.endswith(":hot")]
    few = {c.attack: r for c, r in masked.diagnostics if c.defense == d.defense and c.eps == EPS}
    square = next(r for attack, r in few.items() if attack.startswith("square"))
    full = by_name(masked)
    best = min(
        confusion.miou(r.counts)
        for r in (
            full["net", d.defense, "adaptive", "fgsm", EPS],
            full["net", d.defense, "adaptive", "pgd(steps=10)", EPS],
            few["pgd(steps=10) with twice the steps"],
        )
    )
    assert d.numbers == (confusion.miou(square.counts), best)
    assert d.images == 8
    assert f"square(steps=60) (adaptive) at Linf 12/255 leaves {100 * d.numbers[0]:.1f}" in d.line
    (d,) = [d for d in diagnose(masked) if d.name == "zero gradient" and d.defense.endswith(":quantised")]
    assert d.numbers == (0.1, 1.0)


def test_the_line_of_a_defense_tells_its_worst_case_and_its_flags(masked: Results) -> None:
    full, found = by_name(masked), diagnose(masked)
    made = {v.defense.rpartition(":")[2]: v for v in verdicts(masked, found)}
    assert list(made) == ["quantised", "hot", "detached", "nothing"]
    for name, v in made.items():
        left = {
            threat: min(
                confusion.miou(r.counts)
                for (_, defense, own, attack, eps), r in full.items()
                if defense == v.defense and own == threat and eps is not None and 0 < eps <= v.eps
            )
            for threat in ("oblivious", "adaptive")
        }
        assert (v.oblivious, v.adaptive) == (left["oblivious"], left["adaptive"])
        assert v.worst == min(left.values())
        bare = (r for (_, d, t, _, eps), r in full.items() if (d, t) == ("none", "white-box") and (eps or 1) <= v.eps)
        assert v.bare == min(confusion.miou(r.counts) for r in bare)
        assert v.clean == confusion.miou(full["net", v.defense, "none", "none", 0.0].counts)
        assert set(v.flags) == raised(found, f":{name}")
    assert made["nothing"].word == "does not hold"
    assert "No sign of masked gradients" in made["nothing"].line
    assert made["detached"].word != "holds"
    assert "do not rely on it: " in made["detached"].line
    told = Reader(page(masked)).text
    for v in made.values():
        assert v.line in told
    assert "Masked gradients" in told
    (lead,) = [
        text
        for text in headline(summarise(masked), {f"{d.model} + {d.defense}" for d in found if d.raised})
        if "stands best" in text
    ]
    assert lead in told
    assert any(lead.startswith(f"{start}net") for start in ("", "Of those without one, "))
    assert not any(lead.split(" stands best")[0].endswith(f":{name}") for name in ("quantised", "hot", "detached"))
    assert f"{len(masked.diagnostics)} cells were computed for them alone, on 8 images" in told
    assert {d.line for d in found if d.raised} <= set(doubts(masked, summarise(masked)))
