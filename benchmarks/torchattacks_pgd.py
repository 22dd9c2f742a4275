"""PGD-20 beside torchattacks' PGD: same net, images, eps, step and steps; time ratio and mIoU of both.

torchattacks does not know void: its labels get -100 there, which its cross-entropy leaves out. Needs $SEGAUDIT_DATA
and torchattacks (`make bench` installs it without its pinned dependencies).
"""

from __future__ import annotations

import statistics
import time

import torch
import torchattacks
from _nets import images, nets

from segaudit.attacks.pgd import pgd
from segaudit.metrics import confusion
from segaudit.models.fast import Fast
from segaudit.nn.precision import flush_denormals, resolve
from segaudit.rng import ImageStreams
from segaudit.types import VOID, Batch, Segmenter

STEPS, STEP_SIZE, PAIRS, COUNT = 20, 2 / 255, 3, 8


def main() -> None:
    batch = images(COUNT)
    print(f"PGD-{STEPS}, step 2/255, {COUNT} CamVid val images at 192 x 256, {torch.get_num_threads()} threads")
    print("| net | eps | time ours/theirs (min, median, max) | mIoU ours | mIoU theirs | clean |")
    print("|---|---|---|---|---|---|")
    for label, net in list(nets().items())[:2]:
        for eps in (8 / 255,):
            ratios = []
            for _ in range(PAIRS):
                torch.set_flush_denormal(False)  # as their user has it
                theirs, slow = _time(lambda net=net, eps=eps: _theirs(net, batch, eps))
                flush_denormals()
                ours, fast = _time(lambda net=net, eps=eps: _ours(net, batch, eps))
                ratios.append(fast / slow)
            low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
            scores = [f"{_miou(net, x, batch):.4f}" for x in (ours, theirs, batch.images)]
            print(
                f"| {label} | {eps * 255:g}/255 | {low:.2f}, {middle:.2f}, {high:.2f} | " + " | ".join(scores) + " |",
                flush=True,
            )


def _ours(net: Segmenter, batch: Batch, eps: float) -> torch.Tensor:
    view = Fast(net, resolve("auto"), batch.images[:1])
    pixels = batch.images.contiguous(memory_format=torch.channels_last)
    rng = ImageStreams(0, batch.ids)
    return pgd(view, pixels, batch.labels, rng=rng, eps=eps, steps=STEPS, step_size=STEP_SIZE)


def _theirs(net: Segmenter, batch: Batch, eps: float) -> torch.Tensor:
    labels = batch.labels.where(batch.labels != VOID, -100)
    return torchattacks.PGD(net, eps=eps, alpha=STEP_SIZE, steps=STEPS)(batch.images, labels)


@torch.no_grad()
def _miou(net: Segmenter, pixels: torch.Tensor, batch: Batch) -> float:
    return confusion.miou(confusion.count(net(pixels).argmax(1), batch.labels, net.num_classes))


def _time(work: object) -> tuple[torch.Tensor, float]:
    began = time.perf_counter()
    made = work()  # type: ignore[operator]
    return made, time.perf_counter() - began


if __name__ == "__main__":
    main()
