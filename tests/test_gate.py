"""The gate: which conditions a run meets, and what it says where it falls short."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from leak_kit import chance, experiment, inference, usual, victim
from report_kit import cell, run, sample, scored
from segaudit import cli
from segaudit.report.gate import check, read
from segaudit.types import Results, UserError


def test_conditions_are_read() -> None:
    made = read(" tpr_1[ unet + dp ] <= 0.05")
    assert (made.quantity, made.model, made.eps, made.sign, made.bound) == ("tpr_1", "unet + dp", None, "<=", 0.05)
    assert read("auc[unet + crop(size=[64, 64])]<0.6").model == "unet + crop(size=[64, 64])"
    made = read("miou@8/255>30e-2")
    assert (made.quantity, made.model, made.eps, made.sign, made.bound) == ("miou", "", 8 / 255, ">", 0.3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("auc", "is no condition; write one like 'auc<0.6'"),
        ("auc=0.6", "is no condition"),
        ("auk<0.6", r"no quantity is called 'auk' \(did you mean 'auc'\?\)"),
        ("auc@8/255<0.6", "auc has no budget; leave out @8/255"),
        ("miou@8/0>0.6", "'8/0' is no number"),
        ("miou>0.6.1", "'0.6.1' is no number"),
        ("auc[unet + pd]<0.6", r"no model is called 'unet \+ pd' \(did you mean 'unet \+ dp'\?\)"),
        ("miou>0.5", "a run measures no miou"),
        ("miou@3/255>0.5", "a run measures no miou at 3/255"),
    ],
)
def test_what_cannot_be_asked_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check(usual(), [text])
    assert str(caught.value).startswith("check: ")
    assert "\n" not in str(caught.value)


def test_every_attack_on_every_victim_must_meet_it() -> None:
    assert check(usual(), ["auc<0.951", "balanced_accuracy<0.98", "tpr_1<=0.95"]) == []
    assert check(usual(), ["auc<0.95"]) == ["auc<0.95: auc of lira on unet is 0.95"]
    assert check(usual(), ["auc<0.6"]) == [
        "auc<0.6: auc of global_loss on unet is 0.9",
        "auc<0.6: auc of lira on unet is 0.95",
        "auc<0.6: auc of lira (oblivious) on unet + argmax is 0.6",
        "auc<0.6: auc of lira (adaptive) on unet + argmax is 0.94",
    ]


def test_a_model_may_be_named() -> None:
    assert check(usual(), ["auc[unet + dp]<0.6", "auc[dp]<0.6", "epsilon[dp]<9", "epsilon<9", "miou_gap[dp]<0.1"]) == []
    assert check(usual(), ["epsilon[unet]<9"]) == ["epsilon[unet]<9: epsilon of unet is not known"]
    assert check(usual(), ["miou_gap<0.2"]) == [
        "miou_gap<0.2: miou_gap of unet is 0.3001",
        "miou_gap<0.2: miou_gap of unet + argmax is 0.3001",
    ]


def test_what_is_not_known_falls_short() -> None:
    few = experiment([victim()], [chance(images=50), inference(0.9, images=50)])
    assert check(few, ["tpr_1<0.99"]) == ["tpr_1<0.99: tpr_1 of lira on unet: not resolvable with 50 others"]
    assert check(few, ["tpr_0<0.99"]) == []
    blind = experiment([], [chance(), inference(0.9), chance("lira", model="unet", defense="dp", threat="oblivious")])
    assert check(blind, ["auc[dp]<0.6"]) == [
        "auc[dp]<0.6: auc of lira (oblivious) on unet + dp: no attacker who knows of the defense was tried"
    ]
    assert "parts are missing" in check(usual(lacking=2), ["auc<0.99"])[0]
    unasked = experiment([victim(), victim("dp", facts={"epsilon": 50.0})], [chance(), inference(0.5)])
    assert check(unasked, ["auc<0.6", "epsilon<9", "miou_gap[dp]<0.1"]) == [
        "auc<0.6: auc of unet + dp: no attack on it was made",
        "epsilon<9: epsilon of unet + dp is 50",
        "miou_gap[dp]<0.1: miou_gap of unet + dp is 0.3001",
    ]
    assert check(experiment([], [inference(0.5)]), ["miou_gap<0.5"]) == ["miou_gap<0.5: miou_gap of unet is not known"]


def test_models_under_attack() -> None:
    assert check(sample(), ["miou>0.59", "miou[fpn]>0.64", "miou@2/255>0.09", "miou[fpn]@8/255>=0.09"]) == []
    assert check(sample(), ["miou@8/255>0.35"]) == [
        "miou@8/255>0.35: miou of fgsm on net at Linf 8/255 is 0.3001",
        "miou@8/255>0.35: miou of pgd on net at Linf 8/255 is 0.01999",
        "miou@8/255>0.35: miou of pgd on fpn at Linf 8/255 is 0.09999",
    ]
    with pytest.raises(UserError, match="a run measures no auc"):
        check(run([(cell(), scored(0.6))]), ["auc<0.6"])


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`segaudit check` of a made-up run: exit status, stdout, stderr."""

    def asked(results: Results, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("segaudit.audit.run.results", lambda _: results)
        with pytest.raises(SystemExit) as exit:
            cli.main(["check", "runs/it", *arguments])
        code = exit.value.code
        return (code if isinstance(code, int) else 0), *capsys.readouterr()

    return asked


def test_exit_status(call: Callable[..., tuple[int, str, str]]) -> None:
    assert call(usual(), "--require", "auc<0.99", "--require", "tpr_1<0.99") == (
        0, "auc<0.99: holds\ntpr_1<0.99: holds\n", "",
    )  # fmt: skip
    assert call(usual(), "--require", "auc<0.95") == (1, "auc<0.95: auc of lira on unet is 0.95\n", "")
    code, out, err = call(usual(), "--require", "auk<0.95")
    assert (code, out) == (2, "")
    assert err.startswith("segaudit: check: no quantity is called 'auk'")
    leaking = experiment([], [inference(0.7, "no_model", model=""), inference(0.95)])
    code, out, err = call(leaking, "--require", "auc<0.99")
    assert code == 0
    assert "The split itself leaks" in err
    assert call(usual())[0] == 2  # without a condition
