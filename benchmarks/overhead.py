"""What a step of an attack costs beyond its passes through the net: its time over that of the bare passes.

    python benchmarks/overhead.py [ROW ...] [--steps 20] [--pairs 15] [--net LABEL] [--precision bf16]

The bare loop makes the passes that hooks saw the attack make: (forward + backward of the summed cross-entropy to the
input) for each that came back, forward alone for the rest (AutoPGD looks once more at the end of each of its balls).
Each row has a process of its own, as the memory that another attack leaves behind moves it by some percent.
Pairs are taken in turn in one run, each with the other one first, so that a drifting machine cancels out; the median of
the pairs is what counts on a machine where one pair may be off by half.
Needs $SEGAUDIT_DATA.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from typing import Any

import torch
import torch.nn.functional as F
from _nets import images, nets, seconds

from segaudit.models.fast import Fast
from segaudit.nn.passes import count_passes
from segaudit.nn.precision import prepare_process, resolve
from segaudit.registry import load
from segaudit.rng import ImageStreams
from segaudit.types import VOID

BATCH, EPS = 8, 1 / 255  # at which no image is won, and leaves a smaller batch behind
LOSSES = ("ce", "masked_ce", "balanced_masked_ce", "js")
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"eps": EPS}) for name in ("pgd", "segpgd", "cospgd")},
    **{f"apgd-{loss}": ("apgd", {"eps": EPS, "loss": loss, "radius_reduction": True}) for loss in LOSSES},
    "alma_prox": ("alma_prox", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--net", default="unet-regnetx002")
    parser.add_argument("--precision", default=resolve("auto"))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        return _row(given.rows[0], given)
    print(f"{given.net} in {given.precision}: batch {BATCH} at 192 x 256, {torch.get_num_threads()} threads")
    print(
        "| attack | passes | pairs | lower quartile | median | upper quartile |\n|---|---|---|---|---|---|", flush=True
    )
    options = [
        part for key in ("steps", "pairs", "net", "precision") for part in (f"--{key}", str(getattr(given, key)))
    ]
    for label in given.rows:
        subprocess.run([sys.executable, __file__, label, "--alone", *options], check=True)


def _row(label: str, given: argparse.Namespace) -> None:
    prepare_process()
    batch = images(BATCH)
    pixels = batch.images.contiguous(memory_format=torch.channels_last)
    view = Fast(nets()[given.net], given.precision, pixels[:1])
    name, own = ROWS[label]

    def attack() -> None:
        load("attack", name)(view, pixels, batch.labels, rng=ImageStreams(0, batch.ids), steps=given.steps, **own)

    with count_passes(view) as passes:
        attack()
    gradients, looks = passes.backwards // BATCH, (passes.forwards - passes.backwards) // BATCH

    def bare() -> None:
        for _ in range(gradients):
            x = pixels.detach().requires_grad_()
            loss = F.cross_entropy(view(x), batch.labels, ignore_index=VOID, reduction="sum")
            torch.autograd.grad(loss, x)
        with torch.no_grad():
            for _ in range(looks):
                view(pixels)

    bare()
    ratios = []
    for pair in range(given.pairs):
        first, second = (attack, bare) if pair % 2 else (bare, attack)
        times = {first: seconds(first), second: seconds(second)}
        ratios.append(times[attack] / times[bare])
    shown = " | ".join(f"{r:.3f}" for r in statistics.quantiles(ratios, n=4))
    print(f"| {label} | {gradients} + {looks} | {given.pairs} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
