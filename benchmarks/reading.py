"""How fast images are read beside torchvision's own data sets, on the same files, and what memory that takes.

    python benchmarks/reading.py [--images 1000] [--pairs 5]

Both sides end with a float image in [0, 1] and an int64 label or mask; ours is also checked (size, labels). Pairs are
taken in turn in one run, each with the other one first, and the median counts. The peak is by how much a fresh process
with its libraries loaded grows at most while it opens a set and reads so many images of it, as Linux keeps it. The VOC
tree is written by the script: 375 x 500 JPEG pictures of smooth noise and palette masks. Needs $SEGAUDIT_DATA with
mnist and cifar10.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

from segaudit.data.base import Dataset
from segaudit.registry import load

SETS: dict[str, dict[str, Any]] = {"cifar10": {"split": "train"}, "mnist": {"split": "test"}, "voc": {"split": "val"}}
PEAKS = (100, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--peak", nargs=3, metavar=("SET", "ROOT", "IMAGES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        name, root, count = given.peak
        print(_grown(name, Path(root), int(count)))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        roots = _trees(Path(folder), max(given.images, *PEAKS))
        print(f"{given.images} images, 1 thread; peaks in MiB\n")
        print("| data set | ours, images/s | torchvision's | ratio |", " | ".join(f"peak at {n}" for n in PEAKS), "|")
        print("|---" * (4 + len(PEAKS)) + "|")
        for name, root in roots.items():
            data = _ours(name, root, given.images)
            row = _race(lambda data=data: _read(data), _theirs(name, root, data), given.images, given.pairs)
            print(f"| {name} | {row} | {' | '.join(f'{_peak(name, root, n):.0f}' for n in PEAKS)} |", flush=True)


def _ours(name: str, root: Path, count: int) -> Dataset:
    made: Dataset = load("data", name)(str(root), limit=count, **SETS[name])
    return made


def _read(data: Dataset) -> None:
    for name in data.ids:
        data.sample(name)


def _theirs(name: str, root: Path, data: Dataset) -> Callable[[], None]:
    """Reading the same images with torchvision."""
    sets: dict[str, Callable[[], Any]] = {
        "cifar10": lambda: datasets.ImageFolder(str(root / "train")),
        "mnist": lambda: datasets.MNIST(str(root), train=False),
        "voc": lambda: datasets.VOCSegmentation(str(root), year="2012", image_set="val"),
    }
    their = sets[name]()
    rows = [i * len(their) // len(data) for i in range(len(data))]  # as `limit` spreads them

    def read() -> None:
        for row in rows:
            picture, truth = their[row]
            pil_to_tensor(picture).float() / 255
            torch.tensor([[truth]]) if isinstance(truth, int) else pil_to_tensor(truth).long()

    return read


def _race(ours: Callable[[], None], theirs: Callable[[], None], count: int, pairs: int) -> str:
    spent: dict[Callable[[], None], list[float]] = {ours: [], theirs: []}
    ours(), theirs()
    for pair in range(pairs):
        for side in (ours, theirs) if pair % 2 else (theirs, ours):
            began = time.perf_counter()
            side()
            spent[side].append(time.perf_counter() - began)
    ratio = statistics.median(other / own for own, other in zip(spent[ours], spent[theirs], strict=True))
    speeds = [f"{count / statistics.median(times):.0f}" for times in (spent[ours], spent[theirs])]
    return f"{speeds[0]} | {speeds[1]} | {ratio:.2f}"


def _grown(name: str, root: Path, count: int) -> float:
    """MiB of resident memory that opening a set and reading it take at most."""
    torch.set_num_threads(1)
    function = load("data", name)
    (torch.zeros(9).float() / 255).sum()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of the libraries' loading, is forgotten
    before = _highest()
    _read(function(str(root), limit=count, **SETS[name]))
    return (_highest() - before) / 2**10


def _highest() -> int:
    """KiB of this process's peak; getrusage's begins with that of the process that started it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0])


def _peak(name: str, root: Path, count: int) -> float:
    command = [sys.executable, __file__, "--peak", name, str(root), str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _trees(folder: Path, count: int) -> dict[str, Path]:
    """The root of each set; MNIST is unpacked, as torchvision wants it."""
    real = Path(os.environ["SEGAUDIT_DATA"])
    raw = folder / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (real / "mnist" / "MNIST" / "raw").glob("*.gz"):
        with gzip.open(path) as packed, (raw / path.stem).open("wb") as file:
            shutil.copyfileobj(packed, file)
    year = folder / "voc" / "VOCdevkit" / "VOC2012"
    places = [year / part for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")]
    for place in places:
        place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, 768).tolist()
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(places[0] / f"{i:06}.jpg", quality=90)
        mask = Image.fromarray(rng.choice(np.array([0, 15, 20, 255], np.uint8), (6, 8)))
        mask.putpalette(palette)
        mask.resize((500, 375), Image.Resampling.NEAREST).save(places[1] / f"{i:06}.png")
    (places[2] / "val.txt").write_text("".join(f"{i:06}\n" for i in range(count)))
    return {"cifar10": real / "cifar10", "mnist": folder / "mnist", "voc": folder / "voc"}


if __name__ == "__main__":
    main()
