"""What PGD-20 costs beyond its gradients: its time over 20 x (forward + backward to the input) of the same net.

Pairs are taken in turn in one run, each with the other one first, so that a drifting machine cancels out; the median of
the pairs is what counts on a machine where one pair may be off by half. Needs $SEGAUDIT_DATA.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _nets import images, nets

from segaudit.attacks.pgd import pgd
from segaudit.models.fast import Fast
from segaudit.nn.precision import prepare_process, resolve
from segaudit.rng import ImageStreams
from segaudit.types import VOID

STEPS, PAIRS, EPS = 20, 15, 8 / 255


def main() -> None:
    prepare_process()
    batch = images(2)
    pixels = batch.images.contiguous(memory_format=torch.channels_last)
    precision = resolve("auto")
    threads = torch.get_num_threads()
    print(f"PGD-{STEPS} over {STEPS} x (forward + input gradient), batch 2 at 192 x 256, {threads} threads")
    print("| net | precision | pairs | lower quartile | median | upper quartile |\n|---|---|---|---|---|---|")
    for label, net in list(nets().items())[:2]:
        for kind in dict.fromkeys((precision, "fp32")):
            view = Fast(net, kind, pixels[:1])

            def bare(view: Fast = view) -> None:
                for _ in range(STEPS):
                    x = pixels.detach().requires_grad_()
                    loss = F.cross_entropy(view(x), batch.labels, ignore_index=VOID, reduction="sum")
                    torch.autograd.grad(loss, x)

            def attack(view: Fast = view) -> None:
                pgd(view, pixels, batch.labels, rng=ImageStreams(0, batch.ids), eps=EPS, steps=STEPS)

            bare(), attack()
            ratios = []
            for pair in range(PAIRS):
                first, second = (attack, bare) if pair % 2 else (bare, attack)
                times = {first: _time(first), second: _time(second)}
                ratios.append(times[attack] / times[bare])
            quartiles = statistics.quantiles(ratios, n=4)
            shown = " | ".join(f"{r:.3f}" for r in quartiles)
            print(f"| {label} | {kind} | {PAIRS} | {shown} |", flush=True)


def _time(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
