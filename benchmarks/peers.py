"""Our attacks beside the peers' own code: same net, images, start, steps and step size; mIoU or norm, and time.

    python benchmarks/peers.py [RACE ...] [--images 50] [--steps N] [--net LABEL]

Races: pgd (torchattacks), segpgd and cospgd (cospgd), dag and alma_prox (adv_lib), sea (the authors' code: a checkout
of nmndeep/robust-segmentation at $SEA_CODE). The peers are handed the fp32 network as their user would hand it; ours is
handed what the audit hands it. All verdicts are fp32. Needs $SEGAUDIT_DATA, and the peers (`make bench` installs
them without their pinned dependencies).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _nets import images, nets
from torch import Tensor

from segaudit.metrics import confusion
from segaudit.metrics.worst_case import by_miou
from segaudit.models.fast import Fast
from segaudit.nn.passes import count_passes
from segaudit.nn.precision import prepare_process, resolve
from segaudit.registry import load
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Batch, Counts, Segmenter

BATCH = 10
LOSSES = {"masked_ce": "mask-ce-avg", "js": "js-avg"}
"""Ours -> the name in SEA's code, which holds no balanced loss."""


@dataclass(frozen=True)
class Race:
    """Two ways to make the same adversarial images: of a batch, from the network."""

    title: str
    steps: int
    ours: Callable[[Segmenter, Batch], Tensor]
    theirs: Callable[[Segmenter, Batch], Tensor]
    minimal: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("races", nargs="*", default=["pgd", "segpgd", "cospgd", "dag", "alma_prox", "sea"])
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--net", default="unet-regnetx002")
    parser.add_argument("--eps", type=float, default=2, help="in 255ths")
    given = parser.parse_args()
    prepare_process()
    net, data = nets()[given.net], images(given.images)
    print(f"{given.net}, {given.images} CamVid val images at 192 x 256, {torch.get_num_threads()} threads")
    print("| race | steps | ours | theirs | unit | gradients an image | time ours/theirs | of a gradient |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in given.races:
        try:
            for race in RACES[name](given.eps / 255, given.steps):
                _run(race, net, data)
        except Exception as error:  # a peer may fail in any way: what it said is the result
            print(f"| {name} | | | {type(error).__name__}: {str(error).splitlines()[0][:150]} | | | | |", flush=True)


def _run(race: Race, net: Segmenter, data: Batch) -> None:
    """Both sides batch by batch in turn, so that a drifting machine cancels out."""
    spent, gradients = {"ours": 0.0, "theirs": 0.0}, {"ours": 0, "theirs": 0}
    made: dict[str, list[Tensor]] = {"ours": [], "theirs": []}
    view = Fast(net, resolve("auto"), data.images[:1])
    for start in range(0, len(data), BATCH):
        part = data[start : start + BATCH]
        for side in ("ours", "theirs") if start // BATCH % 2 else ("theirs", "ours"):
            torch.set_flush_denormal(side == "ours")  # which their user has not set
            began = time.perf_counter()
            with count_passes(view if side == "ours" else net) as passes:
                found = race.ours(view, part) if side == "ours" else race.theirs(net, part)
            spent[side] += time.perf_counter() - began
            gradients[side] += passes.backwards
            made[side].append(found.detach())
    torch.set_flush_denormal(True)
    scores = [_score(net, data, torch.cat(made[side], -4), race.minimal) for side in ("ours", "theirs")]
    unit = "median Linf in 255ths, share won" if race.minimal else "mIoU"
    ratio, passed = spent["ours"] / spent["theirs"], [gradients[side] / len(data) for side in ("ours", "theirs")]
    print(
        f"| {race.title} | {race.steps} | {scores[0]} | {scores[1]} | {unit} | {passed[0]:.1f}, {passed[1]:.1f} "
        f"| {ratio:.2f} | {ratio * passed[1] / passed[0]:.2f} |",
        flush=True,
    )


def _score(net: Segmenter, data: Batch, made: Tensor, minimal: bool) -> str:
    """made: N x C x H x W, or candidates x N x C x H x W, of which the worst case counts."""
    if made.ndim == 5:
        counts = [_counts(net, data, one) for one in made]
        choice, rows = by_miou(counts), np.arange(len(data))
        worst = Counts(*(np.stack([getattr(c, k) for c in counts])[choice, rows] for k in Counts.__slots__))
        each = ", ".join(f"{confusion.miou(c):.4f}" for c in counts)
        return f"{confusion.miou(worst):.4f} ({each})"
    counts = _counts(net, data, made)
    if not minimal:
        return f"{confusion.miou(counts):.4f}"
    size = (made - data.images).abs().flatten(1).amax(1)
    won = torch.from_numpy(counts.intersection.sum(1) <= 0.01 * counts.target.sum(1))
    return f"{255 * float(size.where(won, torch.inf).median()):.3f}, {float(won.float().mean()):.2f}"


@torch.no_grad()
def _counts(net: Segmenter, data: Batch, pixels: Tensor) -> Counts:
    guesses = torch.cat([net(part).argmax(1) for part in pixels.split(BATCH)])
    return confusion.count(guesses, data.labels, net.num_classes)


def _ours(name: str, **own: Any) -> Callable[[Segmenter, Batch], Tensor]:
    def made(model: Segmenter, batch: Batch) -> Tensor:
        pixels = batch.images.contiguous(memory_format=torch.channels_last)
        return load("attack", name)(model, pixels, batch.labels, rng=ImageStreams(0, batch.ids), **own)

    return made


def pgd(eps: float, steps: int | None) -> Iterator[Race]:
    import torchattacks

    steps = steps or 20

    def theirs(net: Segmenter, batch: Batch) -> Tensor:
        attack = torchattacks.PGD(net, eps=eps, alpha=eps / 8, steps=steps, random_start=False)
        return attack(batch.images, batch.labels.where(batch.labels != VOID, -100))

    own = {"eps": eps, "steps": steps, "step_size": eps / 8, "start": False}
    yield Race("torchattacks PGD", steps, _ours("pgd", **own), theirs)


def _scaled(name: str, eps: float, steps: int) -> Race:
    """The loop of the authors' script around their package's loss and step."""
    from cospgd.attack_implementations import Attack

    def theirs(net: Segmenter, batch: Batch) -> Tensor:
        x = batch.images.clone()
        for step in range(steps):
            x.requires_grad_()
            logits = net(x)
            loss = F.cross_entropy(logits, batch.labels, ignore_index=VOID, reduction="none")
            if name == "segpgd":
                total = Attack.segpgd_scale(logits, batch.labels, loss, step, steps)
            else:  # their one-hot clamps void to the last class; its loss is 0 there
                total = Attack.cospgd_scale(logits, batch.labels, loss, logits.shape[1]).mean()
            (gradient,) = torch.autograd.grad(total, x)
            x = Attack.step_inf(x, eps, gradient, batch.images, eps / 8, targeted=False)
        return x

    return Race(f"cospgd {name}", steps, _ours(name, eps=eps, steps=steps, step_size=eps / 8, start=False), theirs)


def segpgd(eps: float, steps: int | None) -> Iterator[Race]:
    yield _scaled("segpgd", eps, steps or 20)


def cospgd(eps: float, steps: int | None) -> Iterator[Race]:
    yield _scaled("cospgd", eps, steps or 20)


def _adv_lib(name: str) -> Callable[..., Tensor]:
    sys.modules.setdefault("visdom", types.SimpleNamespace(Visdom=object))  # only plots need it
    return getattr(importlib.import_module("adv_lib.attacks.segmentation"), name)


def dag(eps: float, steps: int | None) -> Iterator[Race]:
    steps, step_size = steps or 100, 0.01
    attack = _adv_lib("dag")

    def theirs(net: Segmenter, batch: Batch) -> Tensor:
        return attack(net, batch.images, batch.labels, max_iter=steps, γ=step_size)

    yield Race("adv_lib DAG", steps, _ours("dag", steps=steps, step_size=step_size), theirs, minimal=True)


def alma_prox(eps: float, steps: int | None) -> Iterator[Race]:
    steps = steps or 500
    attack = _adv_lib("alma_prox")

    def theirs(net: Segmenter, batch: Batch) -> Tensor:
        return attack(net, batch.images, batch.labels, num_steps=steps)

    yield Race("adv_lib ALMA prox", steps, _ours("alma_prox", steps=steps), theirs, minimal=True)


def sea(eps: float, steps: int | None) -> Iterator[Race]:
    steps = steps or 300
    folder = os.environ.get("SEA_CODE")
    if folder is None:
        raise FileNotFoundError("set SEA_CODE to a checkout of nmndeep/robust-segmentation")
    code = _sea_code(Path(folder) / "semseg" / "utils" / "attacker.py")

    def alone(loss: str) -> Callable[[Segmenter, Batch], Tensor]:
        def theirs(net: Segmenter, batch: Batch) -> Tensor:
            labels = batch.labels.where(batch.labels != VOID, -1)
            found, *_ = code.apgd_largereps(
                net, batch.images, labels, eps=eps, n_iter=steps, loss=loss, track_loss="ce-avg", early_stop=True
            )
            return found

        return theirs

    def several(parts: list[Callable[[Segmenter, Batch], Tensor]]) -> Callable[[Segmenter, Batch], Tensor]:
        return lambda net, batch: torch.stack([part(net, batch) for part in parts])

    own = {"eps": eps, "steps": steps, "radius_reduction": True, "start": False}
    ours = [_ours("apgd", loss=loss, **own) for loss in LOSSES]
    yield Race(f"SEA ({' + '.join(LOSSES)})", steps, several(ours), several([alone(loss) for loss in LOSSES.values()]))


def _sea_code(path: Path) -> Any:
    """Their file, with a stand-in for the logger and norms that it takes from autoattack, which is on no registry."""

    class Silent:
        def __init__(self, path: object) -> None: ...

        def log(self, line: str) -> None: ...

    flat: Callable[..., Tensor] = lambda x, keepdim=False: x.flatten(1).norm(dim=1).view(-1, *[1] * 3 * keepdim)  # noqa: E731
    utils = types.SimpleNamespace(Logger=Silent, L1_norm=flat, L2_norm=flat, L0_norm=flat)
    sys.modules.setdefault("autoattack", types.SimpleNamespace(other_utils=utils))  # type: ignore[arg-type]
    sys.modules.setdefault("autoattack.other_utils", utils)  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location("sea_attacker", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["log_path"] = None
    spec.loader.exec_module(module)
    return module


RACES: dict[str, Callable[[float, int | None], Iterator[Race]]] = {
    "pgd": pgd, "segpgd": segpgd, "cospgd": cospgd, "dag": dag, "alma_prox": alma_prox, "sea": sea,
}  # fmt: skip


if __name__ == "__main__":
    main()
