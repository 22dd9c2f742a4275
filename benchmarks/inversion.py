"""Seconds an image of the inversion of a generator: all at once, beside one label and restart after another.

    python benchmarks/inversion.py [--images 4] [--steps 20] [--restarts 10] [--pairs 3] [--precision fp32]
        [--width 16] [--rows 500] [--weights FILE]

Both sides make as many steps from as many starts an image. `together` takes all images, labels and restarts at once, in
the chunks of `gan_inversion`; `one after another` a search at a time, of a single image. `halved` also leaves the worse
half of the restarts behind three times, which only a side that sees them together can. The sides take turns, each as
often the first; the median counts. The generator has random weights unless --weights names those of a trained one; its
time is the same. Fewer steps than the 200 of the defense change the seconds, not the ratio. No data are needed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from _nets import seconds

from segaudit.defenses.gan_inversion import Search
from segaudit.models.purifiers import load_purifier
from segaudit.models.purifiers.gan import CWGAN
from segaudit.nn.precision import prepare_process, resolve
from segaudit.rng import ImageStreams, drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for key, value in (("images", 4), ("steps", 20), ("restarts", 10), ("pairs", 3), ("width", 16), ("rows", 500)):
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--precision", default=resolve("auto"), help="of both sides; bf16, as an attack may ask for")
    parser.add_argument("--weights")
    given = parser.parse_args()
    prepare_process()
    torch.manual_seed(0)
    generator: Any = load_purifier(given.weights) if given.weights else CWGAN(width=given.width)
    generator.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    labels = max(1, generator.classes)
    with torch.no_grad():
        z = torch.randn(given.images, generator.latent)
        images = generator.sample(z, torch.arange(given.images) % labels if generator.classes else None)

    def together(halvings: int) -> Callable[[], None]:
        search = Search(generator, torch.nn.Flatten(), given.steps, given.restarts, 0.1, 0, halvings, given.rows)

        def work() -> None:
            with drawing(ImageStreams(0, [str(i) for i in range(len(images))])):
                search(images)

        return work

    def alone() -> None:
        # One row a chunk is one label and restart after another: with one restart, a chunk may hold a single search.
        search = Search(generator, torch.nn.Flatten(), given.steps, 1, 0.1, 0, 0, 1)
        for restart in range(given.restarts):
            with drawing(ImageStreams(restart, ["0"])):
                search(images[:1])

    sides = {"one after another": alone, "together": together(0), "halved": together(3)}
    counts = {"one after another": 1, "together": given.images, "halved": given.images}
    for work in (sides["together"], sides["halved"]):
        work()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(given.pairs):
        order = list(sides)[pair % len(sides) :] + list(sides)[: pair % len(sides)]
        for name in order:
            with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16"):
                times[name].append(seconds(sides[name]) / counts[name])
    shape = f"{labels} labels x {given.restarts} restarts x {given.steps} steps"
    print(f"{shape}, {given.precision}, {torch.get_num_threads()} threads")
    print("| searches | images at once | seconds an image | of one after another |\n|---|---|---|---|")
    slow = statistics.median(times["one after another"])
    for name, taken in times.items():
        ratio = statistics.median(first / own for first, own in zip(times["one after another"], taken, strict=True))
        print(f"| {name} | {counts[name]} | {statistics.median(taken):.3f} | 1/{ratio:.1f} |", flush=True)
    full = 200 / given.steps
    print(f"for 200 steps: {slow * full:.1f} s, {statistics.median(times['halved']) * full:.2f} s halved")


if __name__ == "__main__":
    main()
