"""Runs made up for the report's tests: records of a wanted mIoU, and records counted from random maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segaudit.metrics import confusion
from segaudit.metrics.perturbation import norms, to_8bit
from segaudit.types import VOID, Cell, Counts, Norms, Picture, Records, Results, Scene

NAMES = ("background", "thing")
PALETTE = ((10, 20, 30), (200, 100, 50), (0, 255, 0), (0, 0, 255))


def cell(
    model: str = "net",
    attack: str = "none",
    eps: float | None = 0.0,
    *,
    threat: str = "",
    norm: str = "",
    defense: str = "none",
) -> Cell:
    """A cell as the audit names it; eps in 255ths."""
    clean = attack == "none"
    threat = threat or ("none" if clean else "white-box")
    return Cell(model, defense, threat, attack, norm or ("" if clean else "linf"), None if eps is None else eps / 255)


def pair(miou: float, images: int) -> Counts:
    """Two classes of 5000 pixels an image, of which so many are right that the mIoU is as wanted."""
    target = np.full((images, 2), 5000)
    hit = np.full_like(target, round(10000 * miou / (1 + miou)))
    return Counts(hit, 10000 - hit, target)


def scored(
    miou: float,
    *,
    images: int = 24,
    rounded: float | None = None,
    goal: float | None = None,
    size: float = 0.0,
    rounded_size: float | None = None,
    backwards: float = 20.0,
) -> Records:
    """Records of a mIoU, all images alike; size: the Linf in 255ths, of which L2 is the tenfold."""
    many = np.ones(images)

    def ball(size: float) -> Norms:
        return Norms(many * size / 255, many * size * 10 / 255, (many * 50 * (size > 0)).astype(int))

    return Records(
        ids=tuple(f"image {i}" for i in range(images)),
        counts=pair(miou, images),
        rounded=pair(miou if rounded is None else rounded, images),
        norms=ball(size),
        norms_rounded=ball(size if rounded_size is None else rounded_size),
        goal=None if goal is None else pair(goal, images),
        places=np.full(images, 100),
        loss=many,
        forwards=many * backwards + 1,
        backwards=many * backwards,
        seconds=many * 0.5,
    )


def run(cells: Sequence[tuple[Cell, Records]], **other: Any) -> Results:
    """A run of these cells."""
    given: dict[str, Any] = {
        "name": "a run",
        "spec": {"name": "a run", "data": {"name": "folder", "size": (4, 6)}, "seed": 3},
        "log": {"version": 1, "name": "a run", "parts": 4, "sessions": []},
        "class_names": NAMES,
        "palette": PALETTE[: len(other.get("class_names", NAMES))],
        "scenes": (),
        "pictures": {},
    }
    return Results(cells=cells, **(given | other))


def sample(**other: Any) -> Results:
    """Two models, two attacks, three budgets, all transfers."""
    cells = []
    left = {
        "net": {"fgsm": (0.5, 0.4, 0.3), "pgd": (0.4, 0.1, 0.02)},
        "fpn": {"fgsm": (0.6, 0.5, 0.4), "pgd": (0.5, 0.35, 0.1)},
    }
    budgets = (0.5, 2, 8)
    for model, attacks in left.items():
        cells.append((cell(model), scored(0.6 if model == "net" else 0.65, backwards=0)))
        for attack, mious in attacks.items():
            steps = 1 if attack == "fgsm" else 20
            cells += [
                (cell(model, attack, eps), scored(miou, size=eps, backwards=steps))
                for eps, miou in zip(budgets, mious, strict=True)
            ]
    for source, target in (("net", "fpn"), ("fpn", "net")):
        for attack in ("fgsm", "pgd"):
            cells += [
                (cell(target, attack, eps, threat=f"transfer:{source}"), scored(0.6 - eps / 100, size=eps, backwards=0))
                for eps in budgets
            ]
    return run(cells, **other)


class Maps:
    """Random predictions, truth and perturbations behind records, for other libraries to score."""

    def __init__(self, images: int = 5, classes: int = 4, size: tuple[int, int] = (12, 16), seed: int = 0) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.classes, self.shape = classes, (images, *size)
        self.ids = tuple(f"id{i}" for i in range(images))
        self.truth = torch.randint(classes, self.shape, generator=self.rng)
        self.truth[torch.rand(self.shape, generator=self.rng) < 0.2] = VOID
        coarse = torch.rand(images, 3, 2, 2, generator=self.rng)  # smooth, so that a lossy picture is near it
        self.images = (F.interpolate(coarse, size, mode="bilinear") * 255).round() / 255
        self.guesses: dict[Cell, Tensor] = {}
        self.deltas: dict[Cell, Tensor] = {}
        self.records: dict[Cell, Records] = {}

    def add(self, cell: Cell, right: float, size: float) -> None:
        """A cell in which about this share of the pixels is right; size: the Linf in 255ths."""
        wrong = torch.randint(self.classes, self.shape, generator=self.rng)
        guess = torch.where(torch.rand(self.shape, generator=self.rng) < right, self.truth % self.classes, wrong)
        delta = (torch.rand(self.images.shape, generator=self.rng) * 2 - 1) * size / 255
        delta = ((self.images + delta).clamp(0, 1) - self.images).half().float()
        adversarial = self.images + delta
        counts = confusion.count(guess, self.truth, self.classes)
        many = len(self.ids)
        self.guesses[cell], self.deltas[cell] = guess, delta
        self.records[cell] = Records(
            self.ids, counts, counts, norms(adversarial, self.images), norms(to_8bit(adversarial), self.images), None,
            np.full(many, self.truth[0].numel()), np.ones(many), np.arange(many) + 1.0, np.arange(many) * 2.0,
            np.linspace(0.1, 0.9, many),
        )  # fmt: skip

    def results(self, **other: Any) -> Results:
        """The run, with the pictures of every cell."""
        scenes = [
            Scene(name, (image * 255).round().byte().permute(1, 2, 0).numpy(), truth.byte().numpy())
            for name, image, truth in zip(self.ids, self.images, self.truth, strict=True)
        ]
        pictures: Mapping[Cell, Sequence[Picture]] = {
            cell: [
                Picture(name, delta.half().numpy(), guess.byte().numpy())
                for name, delta, guess in zip(self.ids, self.deltas[cell], self.guesses[cell], strict=True)
            ]
            for cell in self.records
        }
        names = tuple(f"class {i}" for i in range(self.classes))
        given: dict[str, Any] = {"class_names": names, "scenes": scenes[:2], "pictures": pictures}
        return run(list(self.records.items()), **(given | other))


def two_nets() -> Maps:
    """A net and a weaker one, clean and at two budgets."""
    made = Maps()
    for model, right in (("net", 0.9), ("weak", 0.8)):
        made.add(cell(model), right, 0)
        made.add(cell(model, "pgd", 0.25), right - 0.3, 0.25)
        made.add(cell(model, "pgd", 8), 0.1, 8)
    return made


class Reader(HTMLParser):
    """Collects tags, what they load, and the text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self._inside = "", [], ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data

    def data(self) -> Any:
        """The page's own data, as its script reads it; Infinity and NaN are refused as a browser does."""

        def refuse(word: str) -> None:
            raise ValueError(word)

        return json.loads(self.scripts[0], parse_constant=refuse)
