"""Seconds to train many small shadows: one after another, in worker processes, and stacked into one.

    python benchmarks/shadows.py [--shadows 16] [--steps 4] [--rounds 3] [--batch 8] [--net unet] [--width 16]
        [--precision bf16] [--threads 2] [--workers 2]

Every way makes the same steps of AdamW from the same weights on the same images; each shadow has its own half of them.
The norms are group norms: they have no running statistics, and so can be stacked. `one after another` is what a
training does, with several threads or one; `workers` share the shadows out to processes of one thread each, which are
started and have read their images before the clock runs; `stacked` holds a weight of all shadows in one tensor, and
takes the gradients of all in one pass, by torch.func. The ways take turns, each as often the first, after a step of
each that is not counted; the median of the ratios within a round is what counts. `apart`: by how much the shadows'
last losses differ from those of the first way, at most. Nothing else may run: threads that wait for a core that
another process has make the ways of several threads look many times slower than they are.
Scenes at 64 x 64, and Kvasir-SEG at 96 x 96 where $SEGAUDIT_DATA is. --net: of `tiny`, or of smp, as
`--net smp:Unet:resnet18`, which takes minutes.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from _nets import seconds
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from segaudit.nn.precision import prepare_process, resolve
from segaudit.registry import load
from segaudit.types import VOID

IMAGES = 64


@dataclass(frozen=True)
class Work:
    """What is trained: every way of doing it, and every process, makes the same of it."""

    data: str
    net: str
    width: int
    steps: int
    batch: int
    precision: str

    def draws(self, shadow: int) -> Tensor:
        """The rows of the images of each step: of the shadow's own half."""
        rng = torch.Generator().manual_seed(shadow)
        own = torch.randperm(IMAGES, generator=rng)[: IMAGES // 2]
        return own[torch.randint(len(own), (self.steps, self.batch), generator=rng)]

    def cast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")


Way = Callable[[Work], list[float]]
"""Trains the shadows of a work; the last loss of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in (("shadows", 16), ("steps", 4), ("rounds", 3), ("batch", 8), ("width", 16)):
        parser.add_argument(f"--{key}", type=int, default=value)
    for key in ("threads", "workers"):
        parser.add_argument(f"--{key}", type=int, default=2)
    parser.add_argument("--net", default="unet")
    parser.add_argument("--precision", default=resolve("auto"))
    given = parser.parse_args()
    prepare_process()
    many, threads, workers = given.shadows, given.threads, given.workers
    kinds = ["scenes"] + (["kvasir"] if "SEGAUDIT_DATA" in os.environ else [])
    print(f"{many} shadows, {given.steps} steps of {given.batch} images, {given.net}, {given.precision}\n")
    print("| data | way | seconds | lower quartile | of the first way | upper quartile | apart |\n" + "|---" * 7 + "|")
    with multiprocessing.get_context("spawn").Pool(workers, _start, (kinds,)) as pool:
        ways: dict[str, Way] = {
            f"one after another, {threads} threads": lambda work: _alone(work, many, threads),
            "one after another, 1 thread": lambda work: _alone(work, many, 1),
            f"{workers} workers, 1 thread each": lambda work: pool.starmap(_train, [(work, i) for i in range(many)], 1),
            f"stacked, {threads} threads": lambda work: _stacked(work, many, threads),
        }
        for kind in kinds:
            work = Work(kind, given.net, given.width, given.steps, given.batch, given.precision)
            _race(work, ways, given.rounds)


def _race(work: Work, ways: dict[str, Way], rounds: int) -> None:
    """A row a way: its seconds, and the quartiles of its ratio to the first way in the same round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {}
    for way in ways.values():
        way(replace(work, steps=1))
    for turn in range(rounds):
        first = turn % len(ways)
        for name in [*list(ways)[first:], *list(ways)[:first]]:
            times[name].append(seconds(lambda name=name: losses.update({name: ways[name](work)})))
    base = next(iter(ways))
    for name, taken in times.items():
        ratios = [own / usual for own, usual in zip(taken, times[base], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        apart = max(abs(a - b) for a, b in zip(losses[name], losses[base], strict=True))
        shown = f"{statistics.median(taken):.2f} | {low:.2f} | {middle:.2f} | {high:.2f} | {apart:.0e}"
        print(f"| {work.data} | {name} | {shown} |", flush=True)


def _alone(work: Work, shadows: int, threads: int) -> list[float]:
    torch.set_num_threads(threads)
    return [_train(work, shadow) for shadow in range(shadows)]


def _train(work: Work, shadow: int) -> float:
    """The loss of the last step of one shadow, trained by itself as the training loop would."""
    images, labels = _pictures(work.data)
    net = _network(work, shadow).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    loss = torch.zeros(())
    for rows in work.draws(shadow):
        batch = images[rows].contiguous(memory_format=torch.channels_last)
        with work.cast():
            loss = F.cross_entropy(net(batch).float(), labels[rows], ignore_index=VOID)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def _stacked(work: Work, shadows: int, threads: int) -> list[float]:
    """The same of all shadows at once: a weight of each is one row of a tensor, and AdamW goes by numbers alone."""
    torch.set_num_threads(threads)
    images, labels = _pictures(work.data)
    nets = [_network(work, shadow) for shadow in range(shadows)]
    weights, buffers = stack_module_state(nets)  # type: ignore[arg-type]
    weights = {name: weight.detach().clone() for name, weight in weights.items()}
    shape = copy.deepcopy(nets[0]).to("meta")

    def loss_of(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = functional_call(shape, (weights, buffers), (images,))
        return F.cross_entropy(logits.float(), labels, ignore_index=VOID)

    optimizer = torch.optim.AdamW(list(weights.values()), lr=1e-3)
    losses = torch.zeros(shadows)
    step = vmap(grad_and_value(loss_of))
    for rows in torch.stack([work.draws(shadow) for shadow in range(shadows)], 1):
        with work.cast():
            gradients, losses = step(weights, buffers, images[rows], labels[rows])
        for name, weight in weights.items():
            weight.grad = gradients[name]
        optimizer.step()
    return losses.tolist()


def _network(work: Work, shadow: int) -> nn.Module:
    """A shadow with weights of its own and group norms."""
    torch.manual_seed(shadow)
    classes = 2 if work.data == "kvasir" else 8
    if work.net.startswith("smp:"):
        _, name, encoder = work.net.split(":")
        net = load("model", "smp")(name, classes, encoder_name=encoder).net
    else:
        net = load("model", "tiny")(work.net, classes, width=work.width).net
    return _grouped(net)


def _grouped(net: nn.Module) -> nn.Module:
    for name, child in net.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            setattr(net, name, nn.GroupNorm(next(n for n in (8, 4, 2, 1) if channels % n == 0), channels))
        else:
            _grouped(child)
    return net


@cache
def _pictures(kind: str) -> tuple[Tensor, Tensor]:
    """Images N x 3 x H x W, as the networks take them, and labels N x H x W."""
    if kind == "kvasir":
        root = Path(os.environ["SEGAUDIT_DATA"]) / "kvasir-seg"
        data = load("data", "kvasir")(str(root), split="train", size=[96, 96], limit=IMAGES)
    else:
        data = load("data", "scenes")(split="train", images=IMAGES)
    batch = data.batch(data.ids)
    images, labels = batch.images, batch.labels
    if kind == "scenes":  # which are drawn at 128 at least
        images, labels = F.avg_pool2d(images, 2), labels[:, ::2, ::2].contiguous()
    return (images - 0.5) / 0.25, labels


def _start(kinds: list[str]) -> None:
    prepare_process()
    torch.set_num_threads(1)
    for kind in kinds:
        _pictures(kind)


if __name__ == "__main__":
    main()
