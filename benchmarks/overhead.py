"""What PGD-20 costs beyond its gradients: its time over 20 x (forward + backward to the input) of the same net.

Pairs are taken in turn in one run, so that a drifting machine cancels out. Needs $SEGAUDIT_DATA.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F
from _nets import images, nets

from segaudit.attacks.pgd import pgd
from segaudit.models.fast import Fast
from segaudit.nn.precision import flush_denormals, resolve
from segaudit.rng import ImageStreams
from segaudit.types import VOID

STEPS, PAIRS, EPS = 20, 5, 8 / 255


def main() -> None:
    flush_denormals()
    batch = images(2)
    pixels = batch.images.contiguous(memory_format=torch.channels_last)
    precision = resolve("auto")
    threads = torch.get_num_threads()
    print(f"PGD-{STEPS} over {STEPS} x (forward + input gradient), batch 2 at 192 x 256, {threads} threads")
    print("| net | precision | pairs | ratio min | median | max |\n|---|---|---|---|---|---|")
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
            ratios = sorted(_time(attack) / _time(bare) for _ in range(PAIRS))
            shown = " | ".join(f"{r:.3f}" for r in (ratios[0], statistics.median(ratios), ratios[-1]))
            print(f"| {label} | {kind} | {PAIRS} | {shown} |", flush=True)


def _time(work: object) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
