"""Our mean field on the permutohedral lattice beside pydensecrf2's: time of 5 steps, and how far the results are apart.

    python benchmarks/crf.py [--pairs 7] [--steps 5] [--size 360 480] [--classes 11] [--gradient]

Both sides begin with the logits and the 8-bit picture, build their kernels, and end with beliefs; pydensecrf2 is told
to divide by the sums of the kernels as ours does. Pictures: one of CamVid's val images where $SEGAUDIT_DATA is set, a
drawn street otherwise. Logits: smooth noise, and the picture's truth with noise. Pairs are taken in turn in one run,
each with the other one first; the ratios are of the medians, by the clock and by processor time, which other work on
the machine moves less (pydensecrf2 has one thread). --gradient: also the processor time of ours with the gradient to
the logits and the picture, over that without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import pydensecrf.densecrf as peer
import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.data.base import Dataset
from segaudit.nn.mean_field import MeanField
from segaudit.nn.precision import prepare_process
from segaudit.registry import load
from segaudit.types import VOID


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=[360, 480])
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--gradient", action="store_true")
    given = parser.parse_args()
    prepare_process()
    image, labels, title = _picture(given.size)
    field = MeanField(given.classes, steps=given.steps, learned=False, large="lattice").eval()
    size = f"{image.shape[2]} x {image.shape[3]} x {given.classes}"
    print(f"{title}, {size}, {given.steps} steps, {given.pairs} pairs, {torch.get_num_threads()} threads\n")
    print("| logits | ours, s | pydensecrf2, s | ratio | of CPU time | same labels | beliefs apart | at most | moved |")
    print("|---" * 9 + "|")
    for name, logits in _logits(labels, given.classes).items():

        def ours(logits: Tensor = logits) -> Tensor:
            with torch.no_grad():
                return field(logits, image).softmax(1)

        def theirs(logits: Tensor = logits) -> Tensor:
            return _public(logits, image, given.steps)

        spent, made = _race(ours, theirs, given.pairs)
        clock, processor = ([statistics.median(side[i] for side in times) for times in spent] for i in (0, 1))
        apart = (made[0] - made[1]).abs()
        same = (made[0].argmax(1) == made[1].argmax(1)).double().mean()
        moved = (made[0].argmax(1) != logits.argmax(1)).double().mean()
        row = f"{clock[0]:.2f} | {clock[1]:.2f} | {clock[0] / clock[1]:.2f} | {processor[0] / processor[1]:.2f}"
        print(f"| {name} | {row} | {same:.4f} | {apart.mean():.5f} | {apart.max():.3f} | {moved:.3f} |", flush=True)
        if given.gradient:
            spent, _ = _race(lambda logits=logits: _slope(field, logits, image), ours, given.pairs)
            with_it, without = (statistics.median(cpu for _, cpu in times) for times in spent)
            print(f"with the gradient: {with_it / without:.2f} of the CPU time\n")


def _picture(size: list[int]) -> tuple[Tensor, Tensor, str]:
    """1 x 3 x H x W in [0, 1] on the 8-bit grid, and its truth 1 x H x W."""
    root = os.environ.get("SEGAUDIT_DATA", "")
    name = "camvid" if os.path.isdir(os.path.join(root, "camvid")) else "scenes"
    place = {"root": os.path.join(root, "camvid")} if name == "camvid" else {}
    data: Dataset = load("data", name)(split="val", size=size, limit=1, **place)
    batch = data.batch(data.ids)
    return (batch.images * 255).round() / 255, batch.labels, f"{name} {data.ids[0]}"


def _logits(labels: Tensor, classes: int) -> dict[str, Tensor]:
    """1 x K x H x W: smooth noise, and what a fair network might say of the picture."""
    rng, (height, width) = torch.Generator().manual_seed(0), labels.shape[1:]
    coarse = torch.randn(1, classes, height // 16 + 1, width // 16 + 1, generator=rng)
    smooth = 3 * F.interpolate(coarse, (height, width), mode="bilinear")
    truth = F.one_hot(labels.where(labels != VOID, 0) % classes, classes).movedim(3, 1)
    blunt = F.interpolate(F.avg_pool2d(truth.float(), 8), (height, width), mode="bilinear")
    return {"smooth noise": smooth, "blunt truth and noise": 5 * blunt + smooth / 2}


def _public(logits: Tensor, image: Tensor, steps: int) -> Tensor:
    height, width = logits.shape[2:]
    made = peer.DenseCRF2D(width, height, logits.shape[1])
    made.setUnaryEnergy(-logits[0].log_softmax(0).flatten(1).numpy())
    pixels = np.ascontiguousarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    usual = {"kernel": peer.DIAG_KERNEL, "normalization": peer.NORMALIZE_AFTER}
    made.addPairwiseGaussian(sxy=3, compat=3, **usual)
    made.addPairwiseBilateral(sxy=160, srgb=3, rgbim=pixels, compat=5, **usual)
    return torch.from_numpy(np.array(made.inference(steps))).view(logits.shape)


def _slope(field: MeanField, logits: Tensor, image: Tensor) -> Tensor:
    logits, image = logits.clone().requires_grad_(), image.clone().requires_grad_()
    return torch.autograd.grad(field(logits, image).logsumexp(1).sum(), [logits, image])[1]


def _race(
    ours: Callable[[], Tensor], theirs: Callable[[], Tensor], pairs: int
) -> tuple[tuple[list[tuple[float, float]], ...], tuple[Tensor, Tensor]]:
    """The seconds of each side, by the clock and of the processor, and what they made; a first pair does not count."""
    spent: tuple[list[tuple[float, float]], ...] = ([], [])
    made = (ours(), theirs())
    for pair in range(pairs):
        for side in (1, 0) if pair % 2 else (0, 1):
            began = time.perf_counter(), time.process_time()
            (ours, theirs)[side]()
            spent[side].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return spent, made


if __name__ == "__main__":
    main()
