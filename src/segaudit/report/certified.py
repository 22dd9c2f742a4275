"""What is certified: from the votes of noisy copies to accuracy, mIoU and abstentions at each radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from segaudit.defenses.certify import least_votes, radius
from segaudit.metrics import confusion
from segaudit.report.grid import Grid
from segaudit.report.summary import Row, percent
from segaudit.types import Counts, Ints, Results, Smoothed, UserError, Votes

POINTS = 33
"""Radii at which a curve is drawn."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 270, 44, 12, 10, 44
"""Of the plot and its margins, in its own pixels."""
COLOURS = ("0 114 178", "213 94 0", "0 133 95", "180 89 154", "138 106 0", "58 155 217", "107 79 160", "95 99 104")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A model at one sigma and tau. Shares in [0, 1] of all valid pixels of the images.

    radius: the L2 norm, of images in [0, 1], below which no perturbation changes a certified pixel. certified: right
    and certified; the mIoU is that of the model which abstains, so that a pixel of no class is missing where it
    belongs. abstained: not certified. smoothed: of the model that never abstains. seconds: mean an image.
    """

    model: str
    denoiser: str
    sigma: float
    tau: float
    radius: float
    images: int
    certified_accuracy: float
    certified_miou: float
    abstained: float
    smoothed_accuracy: float
    smoothed_miou: float
    seconds: float


SHARES = ("certified_accuracy", "certified_miou", "abstained", "smoothed_accuracy", "smoothed_miou")


def certificates(results: Results) -> list[Certificate]:
    """One for each set of votes and tau, in the order of the plan."""
    taus, alpha, correction = _asked(results)
    classes, made = len(results.class_names), []
    for of, votes in results.votes:
        candid, _ = _counts(of, votes, classes)
        for tau in taus:
            counts, certain = _counts(of, votes, classes, tau=tau, alpha=alpha, correction=correction)
            total = counts.target.sum()
            made.append(
                Certificate(
                    of.model,
                    of.denoiser,
                    of.sigma,
                    tau,
                    radius(of.sigma, tau),
                    images=len(votes.ids),
                    certified_accuracy=confusion.accuracy(counts),
                    certified_miou=confusion.miou(counts),
                    abstained=float(1 - certain / total) if total else math.nan,
                    smoothed_accuracy=confusion.accuracy(candid),
                    smoothed_miou=confusion.miou(candid),
                    seconds=confusion.mean(votes.seconds),
                )
            )
    return made


def grid(results: Results, rows: Sequence[Row], quantity: str, exact: bool) -> Grid:
    """A row a model, denoiser, sigma and tau. Raises UserError where the run certifies nothing."""
    if not results.votes:
        mend = "ask for them in its spec with `certification: {sigma: 0.25}`"
        raise UserError(f"table: {results.name} holds no certificates; {mend}")
    names = list(Certificate.__dataclass_fields__)

    def shown(certificate: Certificate, name: str) -> str:
        value = getattr(certificate, name)
        if isinstance(value, str | int):
            return str(value)
        if exact:
            return "" if math.isnan(value) else repr(value)
        return percent(value) if name in SHARES else f"{value:.4g}"

    body = [[shown(certificate, name) for name in names] for certificate in certificates(results)]
    asked, (_, alpha, correction) = results.votes[0][0], _asked(results)
    test = f"n0 {asked.n0}, n {asked.n}, alpha {alpha:g} an image ({correction})"
    title = f"{results.name}: certified by randomised smoothing, shares in percent; {test}"
    if _denoised(results):
        title += "; where a denoiser is named, of the model behind it (denoised smoothing)"
    return Grid(title, [name if exact else name.replace("_", " ").replace("miou", "mIoU") for name in names], body, 2)


def radii(results: Results) -> dict[str, Any] | None:
    """The curves of the certified accuracy over the radius, in the coordinates of the plot; None without any."""
    if not results.votes:
        return None
    _, alpha, correction = _asked(results)
    classes, normal = len(results.class_names), NormalDist()
    ends = [of.sigma * normal.inv_cdf(max(0.5, alpha ** (1 / of.n))) for of, _ in results.votes]  # of a single pixel
    far = max(*ends, 1e-9)

    def at(size: float, share: float) -> tuple[float, float]:
        x = LEFT + size / far * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(TOP + (1 - share) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for i, ((of, votes), end) in enumerate(zip(results.votes, ends, strict=True)):
        points = []
        for size in np.linspace(0, end, POINTS).tolist():
            tau = normal.cdf(size / of.sigma)
            counts, _ = _counts(of, votes, classes, tau=tau, alpha=alpha, correction=correction)
            share = confusion.accuracy(counts)
            points += [] if math.isnan(share) else [at(size, share)]
        name = of.model if of.denoiser == "none" else f"{of.model} + {of.denoiser}"
        path = " ".join(f"{x},{y}" for x, y in points)
        lines.append({"name": f"{name}, sigma {of.sigma:g}", "colour": COLOURS[i % len(COLOURS)], "points": path})
    step = _step(far)
    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM,
        "lines": lines, "alpha": f"{alpha:g}", "denoised": _denoised(results),
        "x": [(at(k * step, 0)[0], f"{k * step:g}") for k in range(int(far / step) + 1)],
        "y": [(at(0, share / 100)[1], str(share)) for share in range(0, 101, 20)],
    }  # fmt: skip


def _denoised(results: Results) -> bool:
    """Whether a defense stands between noise and model anywhere."""
    return any(of.denoiser != "none" for of, _ in results.votes)


def _asked(results: Results) -> tuple[list[float], float, str]:
    """tau, alpha and correction of the spec; a run keeps them all, its own defaults too."""
    asked = results.spec.get("certification") or {}
    return asked.get("tau", [0.75]), asked.get("alpha", 1e-4), asked.get("correction", "holm")


def _counts(
    of: Smoothed, votes: Votes, classes: int, *, tau: float = 0.0, alpha: float = 0.0, correction: str = ""
) -> tuple[Counts, int]:
    """The pixel counts N x K of the model that abstains, and how many pixels it is certain of.

    Without a tau it never abstains.
    """
    rows, certain = [], 0
    for table in votes.pixels:
        label, chosen, agreed, pixels = table.T
        heaps = _sums(agreed, pixels, of.n + 1)
        least = least_votes(heaps, tau=tau, alpha=alpha, correction=correction) if tau else 0
        sure, right = agreed >= least, label == chosen
        hit = _sums(label[sure & right], pixels[sure & right], classes)
        target, said = _sums(label, pixels, classes), _sums(chosen[sure], pixels[sure], classes)
        rows.append((hit, target + said - hit, target))
        certain += int(pixels[sure].sum())
    return Counts(*(np.stack(part) for part in zip(*rows, strict=True))), certain


def _sums(keys: Ints, pixels: Ints, count: int) -> Ints:
    """The pixels of each key 0, ..., count - 1."""
    made: Ints = np.bincount(keys, pixels, count).astype(np.int64)
    return made


def _step(far: float) -> float:
    """A round distance of at most six to the end of an axis."""
    size = 10.0 ** math.floor(math.log10(far / 6))
    return next(times * size for times in (1, 2, 5, 10) if times * size * 6 >= far)
