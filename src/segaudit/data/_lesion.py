"""A lesion on tissue: a rough irregular blob among vessels, folds, wet highlights, and smooth stains that are none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segaudit.data._draw import Canvas, Colour, Dice, Field
from segaudit.types import VOID

CLASS_NAMES = ("tissue", "lesion")
PALETTE = ((128, 128, 128), (192, 0, 64))
TISSUE, LESION = range(2)


def lesion(dice: Dice, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture, H x W x 3, and its labels H x W; a lesion differs from a stain by its rough surface and outline."""
    canvas = Canvas(dice.fork("texture"), height, width)
    everywhere = slice(None), slice(None)
    x = ((np.arange(width) + 0.5 - width / 2) / height).astype(np.float32)
    y = ((np.arange(height) + 0.5) / height - 0.5).astype(np.float32)[:, None]
    aspect = width / height

    red = dice.real(0.35, 0.85)
    tissue: Colour = red, red * dice.real(0.45, 0.9), red * dice.real(0.4, 0.85)
    folds = dice.cloud(height, width, height / dice.real(2.5, 5))
    creases = np.maximum(0, 1 - abs(folds - 0.5) * 14) * dice.real(0, 0.35)
    shade = 0.75 + 0.5 * folds - creases + 0.1 * (canvas.lumps - 0.5) + 0.06 * canvas.grain
    canvas.colour[:] = np.array(tissue, np.float32) * shade[..., None]

    for _ in range(dice.whole(2, 5)):  # vessels: where a smooth field crosses a level
        field = dice.cloud(height, width, height / dice.real(2, 4))
        line = abs(field - dice.real(0.35, 0.65)) < dice.real(0.008, 0.02)
        canvas.colour[line] *= np.array((0.85, 0.6, 0.6), np.float32)
    for _ in range(dice.whole(1, 3)):  # stains: the lesion's colours, but smooth and round
        inside = _oval(dice, x, y, aspect, 0.06, 0.18) < 1
        stained = canvas.colour * np.array(_change(dice), np.float32)
        np.copyto(canvas.colour, stained, where=inside[..., None])

    rough = canvas.flecks + 0.7 * canvas.grain * dice.real(0.5, 1)
    for _ in range(1 if dice.chance(0.75) else 2):
        reach = _oval(dice, x, y, aspect, 0.1, 0.26)
        reach = reach + 1.1 * (canvas.lumps - 0.5) + 0.9 * (dice.cloud(height, width, height / 5) - 0.5)
        inside = reach < 1
        surface = 0.7 + 0.6 * rough + 0.25 * np.clip(reach, 0, 1) * (x * dice.real(-3, 3) + y * dice.real(-3, 3))
        colour = np.array(tissue, np.float32) * np.array(_change(dice), np.float32)
        canvas.lay(everywhere, inside, colour * surface[..., None], LESION)

    wet = (canvas.flecks > dice.real(0.8, 0.93)) & (folds > dice.real(0.45, 0.7))
    canvas.colour[wet] = dice.paint(0.85, 1.1, 0.04)
    if dice.chance(0.4):  # outside of the lens: black and without truth
        outside = x * x / (aspect * aspect) + y * y > dice.real(0.3, 0.42)
        canvas.lay(everywhere, outside, np.full_like(canvas.colour, 0.02), VOID)
    return canvas.finish(_light(dice, x, y), dice.real(0.01, 0.05) * dice.grain(height, width, 3))


def _change(dice: Dice) -> Colour:
    """From the tissue's colour to that of a lesion or a stain: darker or paler, redder or less."""
    grey = dice.real(0.55, 0.85) if dice.chance(0.6) else dice.real(1.1, 1.4)
    return grey * dice.real(0.9, 1.2), grey * dice.real(0.7, 1.1), grey * dice.real(0.7, 1.1)


def _oval(dice: Dice, x: Field, y: Field, aspect: float, least: float, most: float) -> Field:
    """The squared distance from somewhere in the picture, 1 on an ellipse with half axes in [least, most)."""
    turn = dice.real(-1, 1)
    cos, sin = (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)
    x = x - np.float32(aspect * dice.real(-0.32, 0.32))
    y = y - np.float32(dice.real(-0.32, 0.32))
    u, v = (x * cos + y * sin) / dice.real(least, most), (y * cos - x * sin) / dice.real(least, most)
    return u * u + v * v


def _light(dice: Dice, x: Field, y: Field) -> Field:
    """A lamp near the lens: brightest somewhere near the middle, of some colour."""
    x, y = x - np.float32(dice.real(-0.25, 0.25)), y - np.float32(dice.real(-0.25, 0.25))
    fall = np.float32(dice.real(0.7, 1.25)) / (1 + dice.real(0.2, 1.8) * (x * x + y * y))
    warm = dice.real(-0.12, 0.12)
    return fall[..., None] * np.array([1 + warm, 1, 1 - warm], np.float32)
