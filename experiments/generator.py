"""What a generator makes, and how far that was from the data while it was trained.

    python experiments/generator.py [mnist-cwgan] [--runs runs] [--columns 20]

Reads the training in `runs/NAME` and writes `results/NAME.png`, a row of samples a label, each column from the same z,
and `results/NAME.svg`, the Frechet distance of the held-out images (`metrics.frechet`) by epoch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _svg import drawing
from PIL import Image

from segaudit.models import weights
from segaudit.models.purifiers import load_purifier
from segaudit.training.loop import history

HERE = Path(__file__).parent / "results"


def main() -> None:
    """Sample, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="mnist-cwgan")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--to", type=Path, default=HERE)
    parser.add_argument("--columns", type=int, default=20)
    given = parser.parse_args()
    folder = given.runs / given.name
    generator: Any = load_purifier(str(folder / "model.safetensors")).eval()
    grid(generator, given.columns).save((given.to / given.name).with_suffix(".png"), optimize=True)
    lines = history(folder)
    key = next(key for line in lines for key in line if "frechet" in key.lower())
    found = {line["epoch"] + 1: line[key] for line in lines if key in line}
    found[lines[-1]["epoch"] + 1] = weights.read(folder / "model.safetensors")[1]["score"][key]
    (given.to / given.name).with_suffix(".svg").write_text(
        drawing({key: {given.name: (list(found), list(found.values()))}}, "epochs", log_y=True)
    )
    print("\n".join(f"epoch {epoch}: {key} {value:.3f}" for epoch, value in found.items()))


@torch.no_grad()
def grid(generator: Any, columns: int) -> Image.Image:
    """A row a label (one without labels), a column a z."""
    labels = max(1, generator.classes)
    z = torch.randn(columns, generator.latent, generator=torch.Generator().manual_seed(0)).repeat(labels, 1)
    own = torch.arange(labels).repeat_interleave(columns) if generator.classes else None
    made = (generator.sample(z, own) * 255).round().byte().unflatten(0, (labels, columns))
    pixels = np.ascontiguousarray(made.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy())
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


if __name__ == "__main__":
    main()
