"""The masking diagnostics: what raises each flag, what must not, and the cells that they plan for themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from audit_kit import CLASSES, NET, assert_same, audit, by_name, content, parts_of, small, two_models, write_pictures
from report_kit import Reader, cell, pair, run, scored
from segaudit import registry
from segaudit.attacks.noise import noise
from segaudit.attacks.pgd import pgd
from segaudit.audit import build, diagnostics
from segaudit.audit.plan import Contents, plan
from segaudit.audit.run import results
from segaudit.audit.spec import RunSpec
from segaudit.metrics import bootstrap, confusion
from segaudit.metrics.records import only
from segaudit.report.doubts import doubts
from segaudit.report.headline import headline
from segaudit.report.masking import diagnose
from segaudit.report.page import page
from segaudit.report.signs import CHECKS, Diagnostic
from segaudit.report.summary import summarise
from segaudit.report.tables import table
from segaudit.report.verdict import verdicts
from segaudit.rng import ImageStreams
from segaudit.training.adversarial import adversarial
from segaudit.types import Batch, Cell, Counts, Records, Results, Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")

EPS, IDS, NOTHING = 12 / 255, [f"p{i:02d}" for i in range(40)], Contents()
DEFENSES = """
import torch
from segaudit.types import Segmenter


class Masked(Segmenter):
    def __init__(self, model, how):
        super().__init__()
        self.model, self.how, self.class_names = model, how, model.class_names

    def forward(self, images):
        if self.how == "quantised":  # sixteen levels, whose gradient is zero
            return self.model(torch.round(images * 15) / 15)
        if self.how == "hot":  # a softmax of these is 0 or 1 to the last bit
            return 3e4 * self.model(images)
        if self.how == "detached":  # what decides has no gradient, and what has one leads astray
            return self.model(images.detach()) + 1e-3 * images.flip(1)
        return self.model(images)


def quantised(model):
    return Masked(model, "quantised")


def hot(model):
    return Masked(model, "hot")


def detached(model):
    return Masked(model, "detached")


def nothing(model):
    return Masked(model, "nothing")
"""
PLAIN = """

def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
"""
TRAINED, SCORED = [f"p{i:02d}" for i in range(16)], [f"p{i:02d}" for i in range(16, 24)]


def spec_of(folder: Path, **over: Any) -> RunSpec:
    """Eight pictures, two attacks, two budgets, and diagnostics with few queries."""
    data = {"name": "folder", "root": str(folder), "classes": CLASSES, "only": SCORED}
    own = {"data": data, "attacks": ["fgsm", {"name": "pgd", "steps": 10}], "eps": ["4/255", "12/255"]}
    own |= {"pictures": {"images": 1}, "diagnostics": {"queries": 60}}
    return RunSpec.model_validate(content(folder, **(own | over)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_pictures(tmp_path_factory.mktemp("masking"), 24)
    (made / "user_net.py").write_text(NET + PLAIN)
    (made / "masks.py").write_text(DEFENSES)
    return made


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


def uneven(mious: list[float]) -> Records:
    """Records of images with each its own mIoU."""
    made = scored(0.5, images=len(mious), size=8)
    rows = [pair(miou, 1) for miou in mious]
    parts = (np.concatenate([getattr(row, name) for row in rows]) for name in ("intersection", "union", "target"))
    return replace(made, counts=Counts(*parts))


def test_a_difference_within_the_noise_of_the_images_is_no_flag() -> None:
    fgsm, pgd_, steady = uneven([0.1, 0.5] * 6), uneven([0.4, 0.3] * 6), uneven([0.14, 0.54] * 6)
    one, other = confusion.miou(fgsm.counts), confusion.miou(pgd_.counts)
    assert other - one > 0.02

    def check(strong: Records) -> Diagnostic:
        cells = [(cell(), scored(0.6, images=12)), (cell(attack="fgsm", eps=8), replace(fgsm, backwards=np.ones(12)))]
        found = diagnose(run([*cells, (cell(attack="pgd", eps=8), strong)]))
        return next(d for d in found if d.name == "one step")

    assert check(pgd_).raised is False
    assert check(pgd_).numbers == (one, other)
    assert check(steady).raised is True
    low, high = bootstrap.difference(steady.counts, fgsm.counts)
    assert 0 < low <= confusion.miou(steady.counts) - one <= high
    assert bootstrap.difference(pgd_.counts, fgsm.counts)[0] < 0


def test_the_paired_interval_is_that_of_a_loop() -> None:
    one, other = uneven([0.1, 0.5, 0.3, 0.7]).counts, uneven([0.2, 0.4, 0.3, 0.1]).counts
    rng, gains = np.random.default_rng(0), []
    for _ in range(1000):
        rows = np.array([0, 1, 2, 3])[rng.integers(4, size=4)]
        drawn = [Counts(c.intersection[rows], c.union[rows], c.target[rows]) for c in (one, other)]
        gains.append(confusion.miou(drawn[0]) - confusion.miou(drawn[1]))
    assert bootstrap.difference(one, other) == pytest.approx(np.quantile(gains, [0.025, 0.975]))
    assert all(map(math.isnan, bootstrap.difference(uneven([0.1]).counts, uneven([0.3]).counts)))


SOUND: list[tuple[Cell, Records]] = [
    (cell(), scored(0.6, backwards=0)),
    (cell(attack="fgsm", eps=8), scored(0.4, size=8, backwards=1)),
    (cell(attack="pgd", eps=2), scored(0.5, size=2)),
    (cell(attack="pgd", eps=8), scored(0.2, size=8)),
]
FEW: list[tuple[Cell, Records]] = [
    (cell(attack="noise", eps=8), scored(0.55, images=6, size=8, backwards=0)),
    (cell(attack="square(steps=200)", eps=8), scored(0.45, images=6, size=8, backwards=0)),
    (cell(attack="pgd with twice the steps", eps=8), scored(0.19, images=6, size=8)),
    (cell(attack="pgd(steps=40)", eps=255), scored(0.03, images=6, size=255)),
]


def flags(few: list[tuple[Cell, Records]], cells: list[tuple[Cell, Records]] = SOUND) -> dict[str, bool | None]:
    return {d.name: d.raised for d in diagnose(run(cells, diagnostics=few))}


@pytest.mark.parametrize(
    ("place", "left", "flag"),
    [(0, 0.19, "noise"), (1, 0.1, "black box"), (2, 0.15, "convergence"), (3, 0.1, "unbounded")],
)
def test_each_cell_of_the_diagnostics_has_its_flag(place: int, left: float, flag: str) -> None:
    quiet = flags(FEW)
    assert {name for name, raised in quiet.items() if raised is None} == {"steps", "transfer"}
    assert not any(quiet.values())
    changed = list(FEW)
    changed[place] = FEW[place][0], replace(FEW[place][1], counts=pair(left, 6))
    made = flags(changed)
    assert {name for name, raised in made.items() if raised} == {flag}


def test_few_images_are_compared_with_the_same_ones_of_the_others() -> None:
    pgd_ = uneven([0.05] * 6 + [0.7] * 18)
    cells = [*SOUND[:3], (SOUND[3][0], pgd_)]
    (d,) = [d for d in diagnose(run(cells, diagnostics=FEW)) if d.name == "black box"]
    assert confusion.miou(pgd_.counts) > 0.45  # on all images, Square would seem the better
    assert d.numbers[1] == pytest.approx(confusion.miou(pair(0.05, 6)))
    assert (d.raised, d.images) == (False, 6)


def test_what_shows_on_a_few_of_the_images_alone_is_no_flag() -> None:
    pgd_ = uneven([0.6] * 6 + [0.1] * 18)
    steady = replace(pgd_, loss=np.where(np.arange(24) < 1, 1.0, 2.0))
    cells = [*SOUND[:3], (SOUND[3][0], steady)]
    made = {d.name: d for d in diagnose(run(cells, diagnostics=[FEW[3]]))}
    assert confusion.miou(only(pgd_, FEW[3][1].ids).counts) > 0.4 + 0.02  # what one step leaves
    assert (made["one step"].raised, made["one step"].images) == (False, 24)
    assert (made["zero gradient"].raised, made["zero gradient"].numbers) == (False, (0.1, 1 / 24))


def test_an_attack_that_is_not_made_for_the_budget_is_no_measure() -> None:
    """One that finds its own norm is cut at each budget, and one fitted on other images may do less than one step."""
    spec = {"name": "a run", "data": {"name": "folder"}, "eps": [8 / 255]}
    black = (cell(attack="square", eps=8), scored(0.3, size=8, backwards=0))
    weak = [
        (cell(attack="fmn(steps=50)", eps=None, norm="linf"), scored(0.1, size=20)),
        (cell(attack="fmn(steps=500)", eps=None, norm="linf"), scored(0.2, size=19)),
        (cell(attack="universal", eps=8), scored(0.55, size=8)),
    ]
    made = {d.name: d.raised for d in diagnose(run([*SOUND[:2], black, *weak], spec=spec))}
    assert {made[name] for name in ("one step", "black box", "steps")} == {None}
    made = {d.name: d.raised for d in diagnose(run([*SOUND, black, *weak], spec=spec))}
    assert (made["one step"], made["black box"]) == (False, False)


def test_a_target_that_is_reached_leaves_nothing_to_be_moved() -> None:
    def check(goal: float) -> Diagnostic:
        cells = [(cell(), scored(0.6)), (cell(attack="pgd to next", eps=8), scored(0.6, goal=goal))]
        return next(d for d in diagnose(run(cells)) if d.name == "zero gradient")

    assert check(1.0).raised is None
    assert (check(0.5).raised, check(0.5).numbers) == (True, (0.1, 1.0))


def test_that_a_weaker_attack_goes_on_is_no_flag() -> None:
    going = [*FEW[:2], (FEW[2][0], scored(0.15, images=6, size=8)), FEW[3]]
    assert flags(going)["convergence"]
    assert not flags(going, [*SOUND, (cell(attack="apgd", eps=8), scored(0.14, size=8))])["convergence"]


def test_few_images_do_not_tell_an_attack_from_noise() -> None:
    def check(by_chance: Records, by_gradient: Records) -> Diagnostic:
        own = [(cell(attack="noise", eps=8), replace(by_chance, backwards=0 * by_chance.loss))]
        cells = [(cell(), scored(0.6, images=12)), *own, (cell(attack="pgd", eps=8), by_gradient)]
        return next(d for d in diagnose(run(cells)) if d.name == "noise")

    wide = check(uneven([0.2, 0.5] * 6), uneven([0.4, 0.1] * 6))
    assert wide.numbers[0] - wide.numbers[1] > 0.02
    assert (wide.raised, wide.line) == (None, "not run: 12 images are too few to tell attacks from noise")
    assert check(uneven([0.2, 0.5] * 6), uneven([0.1, 0.3] * 6)).raised is False
    assert check(uneven([0.2, 0.5] * 6), uneven([0.3, 0.4] * 6)).raised is True


def test_five_images_may_agree_by_chance() -> None:
    def check(images: int) -> bool | None:
        one, many = scored(0.1, images=images, backwards=1), scored(0.2, images=images)
        cells = [(cell(attack="fgsm", eps=8), one), (cell(attack="pgd", eps=8), many)]
        return next(d.raised for d in diagnose(run(cells)) if d.name == "one step")

    assert [check(images) for images in (1, 5, 6)] == [None, None, True]


def test_a_check_without_its_cells_says_so_and_one_without_power_too() -> None:
    made = diagnose(run([(cell(), scored(0.6)), (cell(defense="jpeg"), scored(0.6))]))
    assert {d.name for d in made if d.defense == "none"} == set(CHECKS) - {"oblivious"}
    assert {d.name for d in made if d.defense == "jpeg"} == set(CHECKS) - {"transfer"}
    assert all(d.raised is None and d.line.startswith("not run: no ") for d in made)
    still = [(SOUND[0][0], SOUND[0][1]), (cell(attack="pgd", eps=8), scored(0.59, size=8))]
    noisy = [(cell(attack="noise", eps=8), scored(0.59, images=6, size=8, backwards=0))]
    (d,) = [d for d in diagnose(run(still, diagnostics=noisy)) if d.name == "noise"]
    assert (d.raised, d.line) == (None, "not run: Linf 8/255 is too little for noise and attacks alike")
    alone = [(c, scored(0.2 + 0.1 * i, images=1, size=8)) for i, (c, _) in enumerate(SOUND)]
    assert {d.line for d in diagnose(run(alone)) if d.name in ("budget",)} == {"not run: fewer than 6 images"}


def test_a_gradient_that_is_zero_on_some_images_is_told_with_their_number() -> None:
    after, half = scored(0.2, size=8), np.arange(24) < 6
    hits = np.where(half[:, None], scored(0.6).counts.intersection, after.counts.intersection)
    cells = [SOUND[0], (cell(attack="pgd", eps=8), replace(after, counts=replace(after.counts, intersection=hits)))]
    (d,) = [d for d in diagnose(run(cells)) if d.name == "zero gradient"]
    assert d.raised
    assert d.numbers == (0.1, 0.25)
    assert "changes nothing on 6 of 24 images" in d.line


def test_a_defense_holds_where_its_worst_case_is_above_the_bare_model_s() -> None:
    def verdict(*left: float, few: list[tuple[Cell, Records]] | None = None) -> Any:
        threats = [("oblivious", left[0]), ("adaptive", left[1])]
        own = [(cell(attack="pgd", eps=8, defense="jpeg", threat=t), scored(miou, size=8)) for t, miou in threats]
        found = run([*SOUND, (cell(defense="jpeg"), scored(0.58)), *own], diagnostics=few or [])
        (made,) = verdicts(found, diagnose(found))
        return made

    assert (verdict(0.5, 0.4).word, verdict(0.5, 0.21).word) == ("holds", "does not hold")
    assert verdict(0.3, 0.4).word == "seems to hold"
    assert verdict(0.3, 0.4).flags == ("oblivious",)
    line = verdict(0.5, 0.4).line.replace("\u00a0", " ")
    assert line.startswith(
        "net + jpeg holds at 1 of 1 budgets: at Linf 8/255 the worst of all that was run, pgd (adaptive), leaves it "
        "40.0 % mIoU, and the bare model is left 20.0 % (clean 58.0 %, oblivious 50.0 %, adaptive 40.0 %). No sign of "
        "masked gradients; not run: "
    )
    own = cell(attack="pgd", eps=8, defense="jpeg", threat="adaptive")
    bare = run([(cell(defense="jpeg"), scored(0.58)), (own, scored(0.4))])
    assert [v.word for v in verdicts(bare, diagnose(bare))] == ["cannot be judged"]
    assert "no attack on the bare model is beside it" in verdicts(bare, [])[0].line
    blind = run([*SOUND, (cell(defense="jpeg"), scored(0.58)), (replace(own, threat="oblivious"), scored(0.4))])
    assert [v.word for v in verdicts(blind, [])] == ["cannot be judged"]
    alone = [(SOUND[3][0], scored(0.2, images=1)), (own, scored(0.4, images=1))]
    assert [v.word for v in verdicts(run(alone), [])] == ["cannot be judged"]


def test_the_tables_hold_every_check_and_every_defense() -> None:
    own = [(cell(attack="pgd", eps=8, defense="a_b", threat="adaptive"), scored(0.4, size=8))]
    found = run([*SOUND, (cell(defense="a_b"), scored(0.58)), *own], diagnostics=FEW)
    for format in ("markdown", "latex", "csv"):
        text = table(found, format, form="masking")
        assert text.count("black box") >= 2
        assert "no random noise beside an iterated attack" in text
    lines = table(found, "csv", form="masking").splitlines()
    assert len(lines) == 1 + 2 * (len(CHECKS) - 1)
    line = next(line for line in lines if line.startswith("net,none,black box"))
    assert line.split(",")[3] == "quiet"
    assert [float(x) for x in line.split(",")[-3:-1]] == [confusion.miou(pair(0.45, 6)), confusion.miou(pair(0.19, 6))]
    (line,) = table(found, "csv", form="defenses").splitlines()[1:]
    assert line.startswith("net,a_b,holds,none,pgd (adaptive),")
    with pytest.raises(UserError, match="no attack on a defended model"):
        table(run(SOUND), form="defenses")


def few_jobs(spec: RunSpec, ids: list[str], contents: Contents = NOTHING) -> list[tuple[str, str, str, float | None]]:
    made = diagnostics.plan(plan(spec, ids, contents), spec, ids, contents)
    return [(job.cell.defense, job.cell.threat, job.cell.attack, job.eps) for job in made.jobs]


def test_the_cells_of_a_spec_with_a_defense_and_of_one_without(folder: Path) -> None:
    def spec(**over: Any) -> RunSpec:
        return spec_of(folder, **({"diagnostics": None} | over))

    assert few_jobs(spec(), IDS) == []
    assert few_jobs(spec(defenses=["none", "jpeg"], diagnostics=False), IDS) == []
    own = [
        (defense, threat, attack, eps)
        for defense, threat in (("none", "white-box"), ("jpeg", "adaptive"))
        for attack, eps in (("noise", EPS), ("square(steps=200)", EPS), ("pgd(steps=10) with twice the steps", EPS),
                            ("pgd(steps=40, start=False)", 1.0))
    ]  # fmt: skip
    assert sorted(few_jobs(spec(defenses=["none", "jpeg"]), IDS)) == sorted(own)
    assert sorted(few_jobs(spec(diagnostics=True), IDS)) == sorted(own)[4:]
    found = few_jobs(spec(defenses=["jpeg"], threats=["adaptive"], attacks=["dag"]), IDS)
    assert {attack for _, _, attack, _ in found} == {
        "noise", "square(steps=200)", "fgsm", "pgd(steps=20)", "pgd(steps=20) with twice the steps",
        "pgd(steps=40, start=False)",
    }  # fmt: skip
    assert {eps for *_, eps in found} == {8 / 255, 1.0}
    assert {eps for *_, eps in few_jobs(spec(diagnostics=True, eps=["4/255", 1.0]), IDS)} == {4 / 255, 1.0}
    found = few_jobs(spec(diagnostics=True, attacks=["square"]), IDS, Contents(opaque=frozenset(["net"])))
    assert [attack for _, _, attack, _ in found] == ["noise", "square(steps=200)"]


def test_the_keys_of_the_other_cells_are_as_they_were(folder: Path) -> None:
    over = {"defenses": ["none", "jpeg"]}
    made = [plan(spec_of(folder, diagnostics=d, **over), IDS, Contents()).jobs for d in (None, False, {"limit": 3})]
    assert made[0] == made[1] == made[2]
    spec = spec_of(folder, diagnostics={"limit": 3}, **over)
    checked = diagnostics.plan(plan(spec, IDS, Contents()), spec, IDS, Contents())
    assert checked.shards == (("p00", "p13", "p26"),)
    assert not {job.key for job in checked.jobs} & {job.key for job in made[0]}
    assert len({job.key for job in checked.jobs}) == len(checked.jobs)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("yes", "write true, false, or {limit: 8}"), ({"limits": 3}, "did you mean 'limit'?"), ({"limit": -1}, "limit")],
)
def test_a_wrong_block_is_refused(folder: Path, wrong: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        spec_of(folder, diagnostics=wrong)
    assert said in str(error.value)


def test_a_random_defense_is_attacked_in_expectation_over_twice_the_draws(tmp_path: Path) -> None:
    random = {"name": "random_transforms", "scales": None, "blur": None, "noise": [0.0, 0.05], "quality": None}
    random |= {"bits": None, "eot": 3}
    own: dict[str, Any] = {"attacks": [{"name": "pgd", "steps": 2}], "eps": ["16/255"], "defenses": ["none", random]}
    spec = small(tmp_path, 3, **own, diagnostics={"limit": 2, "queries": 3})
    found = audit(spec, tmp_path / "out")
    cells = {(c.defense == "none", c.attack): r for c, r in found.diagnostics}
    twice = cells[False, "pgd(steps=2) with twice the draws"]
    assert set(twice.forwards) == set(twice.backwards) == {2 * 2 * 3}
    assert set(cells[True, "pgd(steps=2) with twice the steps"].backwards) == {4}
    assert (False, "pgd(steps=2) with twice the steps") not in cells
    assert {len(r) for r in cells.values()} == {2}
    label = spec.defenses[1].label()
    whole = by_name(found)["net", label, "adaptive", "pgd(steps=2)", 16 / 255]
    assert set(whole.forwards) == {2 * 3}
    assert twice.loss.tolist() != only(whole, twice.ids).loss.tolist()

    before = parts_of(tmp_path / "out")
    gone = sorted(before)[::3]
    for part in gone:
        (tmp_path / "out" / part).unlink()
    assert results(str(tmp_path / "out")).lacking == sum(part.startswith("cells") for part in gone)
    again = audit(spec, tmp_path / "out")
    assert_same(replace(found, cells=found.diagnostics), replace(again, cells=again.diagnostics))
    assert again.lacking == 0


def test_what_a_few_images_cost_is_what_all_would(folder: Path, tmp_path: Path) -> None:
    """A row hangs on its image alone: on a few images it is the one of the cell on all."""
    attacks = [{"name": "pgd", "steps": 40, "start": False}, "noise"]
    over: dict[str, Any] = {"models": two_models(folder)[:1], "batch": 1}
    full = by_name(audit(spec_of(folder, **over, attacks=attacks, eps=[1.0], diagnostics=False), tmp_path / "full"))
    asked = {"limit": 3, "queries": 1}
    few = audit(spec_of(folder, **over, attacks=["fgsm"], eps=["8/255"], diagnostics=asked), tmp_path / "few")
    (free,) = [r for c, r in few.diagnostics if c.eps == 1.0]
    same = only(full["net0", "none", "white-box", "pgd(steps=40, start=False)", 1.0], free.ids)
    np.testing.assert_array_equal(same.counts.intersection, free.counts.intersection)
    assert free.ids == ("p16", "p18", "p21")


def test_noise_is_of_its_size_and_more_draws_leave_no_more_right() -> None:
    class Bright(Segmenter):
        class_names = ("dark", "bright")

        def forward(self, images: Tensor) -> Tensor:
            light = images.mean(1, keepdim=True)
            return torch.cat([0.5 - light, light - 0.5], 1)

    images = torch.rand(3, 3, 12, 14, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    labels = (images.mean(1) > 0.5).long()
    left = []
    for steps in (1, 10):
        made = noise(Bright(), images, labels, rng=ImageStreams(0, ("a", "b", "c")), eps=0.1, steps=steps)
        torch.testing.assert_close((made - images).abs(), torch.full_like(images, 0.1))
        left.append((Bright()(made).argmax(1) == labels).flatten(1).sum(1))
    assert (left[1] <= left[0]).all()
    assert (left[1] < left[0]).any()
    assert registry.gradient_free("noise")
