"""What an attack through a defense costs beyond draws x steps passes of the defended net, as a ratio of times.

    python benchmarks/defended.py [ROW ...] [--steps 5] [--pairs 15] [--net LABEL] [--precision bf16]

PGD takes the mean gradient of several draws of a random defense (EOT), and goes straight through what has no gradient
of its own (BPDA). The bare loop makes as many passes of the defended net itself: (forward + backward of the summed
cross-entropy to the input) for each step and draw. An audit gives a random defense one image at a time, and so do
these rows; its draws are one pass of the attack, so they are also compared with a bare loop of the same draws at once.
The last column is what the defense itself costs: such a pass over one of the net without it.
Each row has a process of its own; the sides take turns, each as often the first; the median counts.
Needs $SEGAUDIT_DATA.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _nets import images, nets, seconds

from segaudit.defenses.eot import EOT, draws_of
from segaudit.models.fast import Fast
from segaudit.nn.passes import count_passes
from segaudit.nn.precision import prepare_process, resolve
from segaudit.registry import load
from segaudit.rng import ImageStreams, drawing
from segaudit.types import VOID, Segmenter

EPS = 1 / 255
ROWS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "eot-4": (1, "random_transforms", {"eot": 4}),
    "eot-10": (1, "random_transforms", {"eot": 10}),
    "eot-2-smoothing": (1, "smoothing", {"draws": 4, "eot": 2}),
    "jpeg": (8, "jpeg", {}),
    "bit_depth": (8, "bit_depth", {}),
    "median": (8, "median", {"gradient": "straight_through"}),
    "multiscale": (8, "multiscale", {}),
    "crf": (2, "crf", {}),
}
"""label -> images at once, defense, its arguments."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--net", default="unet-regnetx002")
    parser.add_argument("--precision", default=resolve("auto"))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        _row(given.rows[0], given)
        return
    print(f"{given.net} in {given.precision}: 192 x 256, {torch.get_num_threads()} threads")
    head = ["defense", "images", "draws x steps", "pairs", "lower quartile", "median", "upper quartile"]
    head += ["draws at once", "a pass beside the net's"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    options = [
        part for key in ("steps", "pairs", "net", "precision") for part in (f"--{key}", str(getattr(given, key)))
    ]
    for label in given.rows:
        subprocess.run([sys.executable, __file__, label, "--alone", *options], check=True)


def _row(label: str, given: argparse.Namespace) -> None:
    prepare_process()
    count, name, own = ROWS[label]
    batch, net = images(count), nets()[given.net]
    pixels = batch.images.contiguous(memory_format=torch.channels_last)
    model = load("defense", name)(net, **own)
    draws = draws_of(model)
    alone, view, undefended = (
        Fast(made, given.precision, pixels[:1]) for made in (model, EOT(model, draws) if draws > 1 else model, net)
    )

    def attack() -> None:
        streams = ImageStreams(0, batch.ids)
        with drawing(streams.child("defense")):
            load("attack", "pgd")(view, pixels, batch.labels, rng=streams, eps=EPS, steps=given.steps)

    def bare(net: Segmenter, passes: int, copies: int = 1) -> Callable[[], None]:
        several, labels = pixels.repeat_interleave(copies, 0), batch.labels.repeat_interleave(copies, 0)

        def work() -> None:
            with drawing(ImageStreams(0, batch.ids)):
                for _ in range(passes):
                    x = several.detach().requires_grad_()
                    loss = F.cross_entropy(net(x), labels, ignore_index=VOID, reduction="sum")
                    torch.autograd.grad(loss, x)

        return work

    with count_passes(view) as passes:
        attack()
    steps = passes.backwards // count
    sides = [attack, bare(alone, draws * steps), bare(undefended, draws * steps)]
    if draws > 1:
        sides.append(bare(alone, steps, draws))
    for work in sides[1:]:
        work()
    times: list[list[float]] = []
    for pair in range(given.pairs):
        turn = [(i + pair) % len(sides) for i in range(len(sides))]
        taken = {i: seconds(sides[i]) for i in turn}
        times.append([taken[i] for i in range(len(sides))])
    ratios = [taken[0] / taken[1] for taken in times]
    shown = [f"{r:.3f}" for r in statistics.quantiles(ratios, n=4)]
    shown.append(f"{statistics.median(t[0] / t[3] for t in times):.3f}" if draws > 1 else "")
    shown.append(f"{statistics.median(t[1] / t[2] for t in times):.2f}")
    print(f"| {label} | {count} | {draws} x {steps} | {given.pairs} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
