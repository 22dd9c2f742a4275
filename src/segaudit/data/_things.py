"""The objects of a street: each stands at `x` on the ground at depth `q`, both in heights of the picture.

`q` is also the scale there: a thing that is h camera heights tall is h * q tall in the picture.
"""

from __future__ import annotations

from segaudit.data._draw import Canvas, Colour, Dice, Field
from segaudit.types import VOID

TREE, CAR, PERSON, SIGN = 4, 5, 6, 7
DARK: Colour = (0.09, 0.09, 0.1)


def shadow(canvas: Canvas, x: float, y: float, q: float, width: float, lean: float) -> None:
    """What a thing keeps from the sun, on the ground beside it."""
    view = canvas.view(x + lean * width * q, y + 0.14 * q, width * q * 1.3, 0.3 * q)
    if view:
        canvas.darken(view, view.disc(0, 0.5, 1, 1), 0.62)


def car(canvas: Canvas, dice: Dice, x: float, y: float, q: float, sun: float) -> None:
    """A car or van, from behind, from the front, or from its side."""
    paint, glass = dice.paint(0.1, 0.85, 0.55), dice.paint(0.08, 0.4, 0.25)
    van, side = dice.chance(0.25), dice.chance(0.3)
    view = canvas.view(x, y, (2.7 if side else 1.35) * q, (1.25 if van else 0.98) * q)
    if not view:
        return
    canvas.begin()
    shade = 0.72 + 0.4 * view.v + 0.12 * sun * view.u
    if side:
        belt, nose = 0.56, -0.12 * dice.pick((-1, 1))
        canvas.put(view, view.taper(1, 0.93, 0.16, belt), paint, CAR, shade)
        cabin = (0.8, 0.7) if van else (0.68, 0.4)
        canvas.put(view, view.taper(*cabin, belt, 1, nose), paint, CAR, shade)
        panes = view.taper(cabin[0] - 0.1, cabin[1] - 0.08, belt, 0.91, nose) & (abs(view.u - nose) > 0.05)
        canvas.put(view, panes, glass, CAR, 0.8 + 0.6 * view.v)
        for end in (-0.6, 0.6):
            canvas.put(view, view.disc(end, 0.18, 0.19, 0.2), DARK, CAR)
            canvas.put(view, view.disc(end, 0.18, 0.09, 0.09), (0.5, 0.5, 0.52), CAR)
        canvas.put(view, view.slab(-0.97, 0.97, 0.36, 0.4), paint, CAR, 0.5)
        return
    belt = 0.5 if van else 0.55
    canvas.put(view, view.slab(-0.92, -0.55, 0, 0.25) | view.slab(0.55, 0.92, 0, 0.25), DARK, CAR)
    canvas.put(view, view.taper(0.98, 0.9, 0.12, belt), paint, CAR, shade)
    canvas.put(view, view.taper(0.9, 0.76 if van else 0.62, belt, 1), paint, CAR, shade)
    canvas.put(view, view.taper(0.76, 0.62 if van else 0.5, belt + 0.03, 0.91), glass, CAR, 0.7 + 0.8 * view.v)
    canvas.put(view, view.slab(-0.95, 0.95, 0.14, 0.21), DARK, CAR, 2.4)
    lamps = dice.pick(((0.75, 0.1, 0.08), (0.95, 0.93, 0.8)))
    for end in (-0.74, 0.74):
        canvas.put(view, view.disc(end, belt - 0.12, 0.15, 0.08), lamps, CAR)
    canvas.put(view, view.slab(-0.25, 0.25, 0.24, 0.33), (0.85, 0.82, 0.6), CAR)


def person(canvas: Canvas, dice: Dice, x: float, y: float, q: float, sun: float) -> None:
    """Somebody who stands or walks, now and then with a bag."""
    view = canvas.view(x, y, 0.62 * q, dice.real(1.0, 1.3) * q)
    if not view:
        return
    canvas.begin()
    top, legs = dice.paint(0.1, 0.85, 0.6), dice.paint(0.08, 0.6, 0.4)
    brightness = dice.real(0.25, 0.8)
    skin, hair = (brightness, brightness * 0.76, brightness * 0.62), dice.paint(0.05, 0.45, 0.35)
    shade: Field = 0.9 + 0.2 * sun * view.u + 0.1 * view.v
    step = dice.real(0.1, 0.45)
    for way in (-1, 1):
        middle = way * (0.14 + step * (0.5 - view.v))
        canvas.put(view, (abs(view.u - middle) < 0.24) & (view.v < 0.5), legs, PERSON, shade)
        arm = way * (0.62 + 0.3 * (0.75 - view.v))
        canvas.put(view, (abs(view.u - arm) < 0.15) & (view.v > 0.45) & (view.v < 0.8), top, PERSON, shade * 0.85)
    if dice.chance(0.25):  # a skirt or a coat
        canvas.put(view, view.taper(0.62, 0.42, 0.22, 0.5), legs, PERSON, shade)
    stripes = 1 - 0.35 * (view.v * 24 % 2 < 1) if dice.chance(0.3) else 1.0
    canvas.put(view, view.taper(0.44, 0.58, 0.42, 0.84), top, PERSON, shade * stripes)
    if dice.chance(0.3):
        canvas.put(view, view.slab(0.4, 0.95, 0.3, 0.52), dice.paint(0.1, 0.6, 0.5), PERSON)
    canvas.put(view, view.disc(0, 0.91, 0.36, 0.1), hair, PERSON)
    canvas.put(view, view.disc(0.06 * sun, 0.89, 0.28, 0.08), skin, PERSON, shade)


def tree(canvas: Canvas, dice: Dice, x: float, y: float, q: float, sun: float) -> None:
    """A street tree: a trunk and a crown of some ragged round lobes, in any season's colour."""
    height, width = dice.real(2.2, 3.8), dice.real(1.5, 2.4)
    view = canvas.view(x, y, width * q, height * q)
    if not view:
        return
    canvas.begin()
    bark, bare = dice.paint(0.12, 0.4, 0.2), dice.real(0.3, 0.45)
    lean = dice.real(-0.15, 0.15)
    trunk = abs(view.u - lean * view.v) < 0.11 - 0.05 * view.v
    canvas.put(view, trunk & (view.v < 0.75), bark, TREE, 1 + 0.4 * sun * view.u)
    part = view.rows, view.columns
    middle = (bare + 1) / 2
    crown = view.disc(0, middle, 0.7, (1 - bare) * 0.45)
    ragged = (canvas.lumps[part] - 0.5) * 0.5
    up = 0.3 * width / height
    for _ in range(4):
        u, v = dice.real(-0.45, 0.45), dice.real(bare + up, 1 - 1.12 * up)
        crown |= ((view.u - u) / 0.49) ** 2 + ((view.v - v) / up) ** 2 < 1 + ragged
    canvas.put(view, crown, foliage(dice), TREE, leaves(canvas, part) + 0.2 * sun * view.u)


def foliage(dice: Dice) -> Colour:
    """The mean colour of leaves: mostly some green, else autumn, blossom or a bare grey."""
    kind = dice.real(0, 1)
    light = dice.real(0.2, 0.6)
    if kind < 0.5:
        return light * dice.real(0.6, 1.05), light, light * dice.real(0.3, 0.85)
    if kind < 0.75:
        return light * 1.2, light * dice.real(0.5, 1.0), light * dice.real(0.2, 0.7)
    return dice.paint(0.25, 0.7, 0.25)


def leaves(canvas: Canvas, part: tuple[slice, slice]) -> Field:
    """Light and shadow among leaves."""
    return 0.4 + 0.9 * canvas.flecks[part] + 0.25 * canvas.grain[part]


def sign(canvas: Canvas, dice: Dice, x: float, y: float, q: float, sun: float) -> None:
    """A post with a plate (round, square, a triangle or a lozenge), or with a traffic light."""
    view = canvas.view(x, y, 0.8 * q, dice.real(1.7, 2.4) * q)
    if not view:
        return
    canvas.begin()
    thick = max(0.15, 1.7 / (0.4 * q * 128))
    canvas.put(view, (abs(view.u) < thick) & (view.v < 0.9), dice.paint(0.2, 0.75, 0.15), SIGN, 1 + 0.9 * sun * view.u)
    rim, face = dice.paint(0.15, 0.95, 0.7), dice.paint(0.15, 0.95, 0.7)
    kind = dice.whole(0, 4)
    for scale, colour in ((1.0, rim), (0.74, face)):
        u, v = view.u / (0.95 * scale), (view.v - 0.82) / (0.18 * scale)
        if kind == 0:
            plate = u * u + v * v < 1
        elif kind == 1:
            plate = (abs(u) < 0.88) & (abs(v) < 0.88)
        elif kind == 2:
            plate = (v > -0.8) & (2 * abs(u) + v < 1)
        elif kind == 3:
            plate = abs(u) + abs(v) < 1.1
        else:
            plate = (abs(u) < 0.5) & (abs(v) < 1)
        canvas.put(view, plate, colour, SIGN)
    ink = dice.paint(0.05, 0.9, 0.4)
    if kind == 4:
        canvas.put(view, view.disc(0, dice.pick((0.73, 0.82, 0.91)), 0.24, 0.045), dice.paint(0.5, 0.9, 0.8), SIGN)
    elif dice.chance(0.5):
        canvas.put(view, view.slab(-0.45, 0.45, 0.79, 0.85), ink, SIGN)
    else:
        canvas.put(view, view.slab(-0.13, 0.13, 0.74, 0.89), ink, SIGN)


def clutter(canvas: Canvas, dice: Dice, x: float, y: float, q: float, sun: float) -> None:
    """Something that has no class (a bin, a crate, a bollard): void."""
    view = canvas.view(x, y, dice.real(0.3, 0.6) * q, dice.real(0.4, 0.7) * q)
    if not view:
        return
    canvas.begin()
    canvas.put(view, view.taper(0.8, 0.98, 0, 1), dice.paint(0.1, 0.7, 0.5), VOID, 0.9 + 0.3 * sun * view.u)
    canvas.put(view, view.slab(-1, 1, 0.84, 1), dice.paint(0.1, 0.7, 0.3), VOID)
