"""Denoised smoothing: a denoiser between noise and model, as a defense and under certification."""

from __future__ import annotations

from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit_kit import audit, content, parts_of, save_spec, small
from nets import problem
from report_kit import Reader, two_nets
from segaudit.audit import build, parts, votes
from segaudit.audit.keys import Contents
from segaudit.audit.parts import Part
from segaudit.audit.plan import plan
from segaudit.audit.run import results
from segaudit.audit.spec import RunSpec
from segaudit.defenses.certify import ballot
from segaudit.models import bundled
from segaudit.models.purifiers import save_purifier
from segaudit.report.certified import certificates
from segaudit.report.page import page
from segaudit.report.tables import table
from segaudit.rng import drawing
from segaudit.types import Smoothed, UserError
from test_certify import SIGMA, Sign, cast, known, voted
from test_defenses import behind, streams
from test_denoiser import lively, noisy

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {"sigma": 0.1, "tau": 0.6, "n0": 2, "n": 16, "alpha": 0.05}
IDS = ("a", "b", "c")


class Average(nn.Module):
    """The mean of each 2 x 2 pixels in their place: noise of half the size."""

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0)


def test_the_copies_vote_on_what_the_denoiser_makes_of_them() -> None:
    """Of a model and a denoiser whose probabilities are known: noise of half the size doubles the distance."""
    images, normal = known(0.7, 2, 1, 40, 40), NormalDist()
    own: dict[str, Any] = {"sigma": SIGMA, "n0": 20, "n": 60}
    shares = []
    for model in (Sign(), behind(Sign(), {"name": "denoise", "denoiser": Average()})):
        found = ballot(model, images, rng=streams(2), **own)
        shares.append(float(found.votes[found.classes == 0].double().mean()) / 60)
    assert shares[0] == pytest.approx(0.7, abs=0.01)
    assert shares[1] == pytest.approx(normal.cdf(2 * normal.inv_cdf(0.7)), abs=0.01)  # 0.853


def test_smoothing_with_a_denoiser_is_the_chain_of_both_and_the_mean_by_hand() -> None:
    p, net = problem("segmentation"), lively()
    own: dict[str, Any] = {"name": "smoothing", "sigma": 0.3, "draws": 5}
    chain = {"name": "chain", "parts": [own, {"name": "denoise", "denoiser": net}]}
    found = []
    for defense in (own | {"denoiser": net}, chain, own):
        with drawing(streams(4)):
            found.append(behind(p.model, defense)(p.images))
    assert torch.equal(found[0], found[1])
    for i in range(4):
        rng = streams(4)[torch.tensor([i])]
        copies = torch.cat([p.images[i : i + 1] + 0.3 * rng.normal(p.images[i : i + 1]) for _ in range(5)])
        by_hand = p.model(net(copies)).softmax(1).mean(0).log()
        torch.testing.assert_close(found[0][i], by_hand, rtol=0, atol=1e-10)
    assert not torch.allclose(found[0], found[2], atol=0.1)


def test_the_gradient_goes_through_the_denoiser() -> None:
    p, to = problem("segmentation"), noisy(4, 3, 17, 23)

    def value(images: Tensor) -> Tensor:
        with drawing(streams(4)):
            logits = behind(p.model, {"name": "smoothing", "sigma": 0.1, "draws": 2, "denoiser": lively()})(images)
        return F.nll_loss(logits, p.labels, ignore_index=255, reduction="sum")

    images = p.images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(images), images)
    ahead, back = (value(p.images + step * to) for step in (1e-6, -1e-6))
    assert float((slope * to).sum()) == pytest.approx(float(ahead - back) / 2e-6, rel=1e-3)


def test_a_spec_s_path_becomes_the_denoiser_wherever_it_stands(tmp_path: Path) -> None:
    path, images = tmp_path / "net.safetensors", noisy(2, 3, 9, 12).float()
    save_purifier(lively().float(), path)
    here, bare = {"denoiser": str(path)}, problem("segmentation", torch.float32).model
    expected = bare(lively().float()(images))
    for part in (
        Part(name="denoise", args=here),
        Part(name="chain", args={"parts": ["none", {"name": "denoise", **here}]}),
        Part(name="chain", args={"parts": [{"name": "chain", "parts": [{"name": "denoise", "args": here}]}]}),
    ):
        assert torch.equal(build.defended(bare, part)(images), expected)
        assert here == {"denoiser": str(path)}  # the spec is as it was
    assert build.handed("mine.py:defense", {"denoiser": "bm3d"}) == {"denoiser": "bm3d"}
    for args, said in (
        (3, "defense 'denoise': denoiser must be the path of a denoiser's weights, not 3"),
        (str(bundled.ZOO / "unet.safetensors"), "unet.safetensors holds model 'unet'; give weights that"),
    ):
        with pytest.raises(UserError) as error:
            build.defended(bare, Part(name="denoise", args={"denoiser": args}))
        assert said in str(error.value)


def keys(spec: RunSpec) -> tuple[list[str], list[str]]:
    """Of its cells by defense, and of its votes."""
    contents = Contents(models={"net": "tensors"})
    return [job.key for job in plan(spec, IDS, contents).jobs], [
        job.key for job in votes.plan(spec, IDS, contents).jobs
    ]


def test_the_weights_are_in_the_keys_of_what_they_decide_and_in_no_other(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    here = {"denoiser": str(path)}
    smooth = {"name": "smoothing", "sigma": 0.1}
    plain = {"defenses": ["none", smooth], "certification": TINY}
    denoised = {
        "defenses": ["none", smooth, smooth | here, {"name": "chain", "parts": [smooth, {"name": "denoise", **here}]}],
        "certification": TINY | {"denoisers": ["none", {"name": "denoise", **here}]},
    }

    def found(seed: int, over: dict[str, Any]) -> tuple[list[str], list[str]]:
        save_purifier(lively(seed).float(), path)
        return keys(small(tmp_path, **over))

    (old, old_votes), (one, one_votes), (two, two_votes) = found(0, plain), found(0, denoised), found(1, denoised)
    assert found(0, denoised) == (one, one_votes)
    assert len(set(one)) == len(one) > len(old)
    assert one[: len(old)] == two[: len(old)] == old
    assert set(one[len(old) :]).isdisjoint(two)
    assert (one_votes[0], len(one_votes)) == (old_votes[0], 2)
    assert two_votes[0] == one_votes[0] != one_votes[1] != two_votes[1]
    (only,) = keys(small(tmp_path, certification=TINY | here))[1]
    save_purifier(lively(1).float(), path)
    assert only == one_votes[1]
    assert keys(small(tmp_path, certification=TINY | here))[1] == [two_votes[1]]


def test_a_run_certifies_with_and_without_a_denoiser_and_says_so(tmp_path: Path) -> None:
    path, out = tmp_path / "net.safetensors", tmp_path / "out"
    save_purifier(lively().float(), path)
    here = {"denoiser": str(path)}
    asked: dict[str, Any] = {
        "attacks": ["fgsm"],
        "eps": ["4/255"],
        "defenses": ["none", {"name": "smoothing", "draws": 2, **here}],
        "count": 2,
        "certification": TINY | {"denoisers": ["none", {"name": "denoise", **here}]},
    }
    first = audit(small(tmp_path, **asked), out)
    label = f"denoise(denoiser={path})"
    assert [row.denoiser for row in certificates(first)] == ["none", label]
    assert [len(own.ids) for _, own in first.votes] == [2, 2]
    apart = [own.pixels[0].tolist() for _, own in first.votes]
    assert apart[0] != apart[1]
    assert f"smoothing(draws=2, denoiser={path})" in {cell.defense for cell, _ in first.cells}
    assert "of the model behind it (denoised smoothing)" in table(first, form="certified").splitlines()[0]
    text = " ".join(Reader(page(first)).text.split())
    assert f"net + {label}, sigma 0.1" in text
    assert "the copies pass through it before the model (denoised smoothing), and the certificate is" in text

    before = parts_of(out)
    save_purifier(lively(1).float(), path)
    again = audit(small(tmp_path, **asked), out)
    new = parts_of(out).keys() - before.keys()
    assert all(parts_of(out)[key] == before[key] for key in before)
    cells = [key for key in new if "cells" in str(key)]
    assert len(cells) == 1 + 3  # votes; clean, oblivious, adaptive of the smoothing
    assert results(str(out)).votes[0][1].pixels[0].tolist() == first.votes[0][1].pixels[0].tolist()
    assert again.votes[1][1].pixels[0].tolist() != first.votes[1][1].pixels[0].tolist()


def test_nothing_is_said_of_denoising_where_there_is_none() -> None:
    plain = voted((Smoothed("net", "none", 0.25, 10, 80), cast(np.random.default_rng(0))[0]))
    assert "denoised" not in table(plain, form="certified")
    assert "denoised smoothing" not in Reader(page(plain)).text
    assert "denoised smoothing" not in Reader(page(two_nets().results())).text


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"denoiser": "a", "denoisers": ["none"]}, "certification: give denoiser or denoisers, not both"),
        ({"denoisr": "a"}, "certification: unknown key 'denoisr' (did you mean 'denoisers'?)"),
        ({"denoisers": ["denoise"]}, "defense 'denoise' needs the argument 'denoiser'"),
    ],
)
def test_a_wrong_block_is_one_line(tmp_path: Path, over: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        parts.read(RunSpec, save_spec(tmp_path / "spec.yaml", content(tmp_path, certification=over)))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_there_are_said_before_any_work(tmp_path: Path) -> None:
    spec = small(tmp_path, count=2, certification=TINY | {"denoiser": str(tmp_path / "no.safetensors")})
    with pytest.raises(UserError, match=r"there is no file .*no.safetensors"):
        audit(spec, tmp_path / "out")
    assert not (tmp_path / "out" / "cells").exists()
