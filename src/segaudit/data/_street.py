"""A toy street in true perspective: sky, walls along both sides, ground, then things from far to near.

The camera looks along the street from one unit above the ground. In the picture, with x and y in heights of the
picture from the vanishing point, the ground at depth q (in 1 / distance) lies at y = q, so q is also the scale there:
a place X to the side is at x = X * q, and a wall of height h there reaches from y = q up to y = q - h * q.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segaudit.data import _things as things
from segaudit.data._draw import Canvas, Colour, Dice, Field, Mask
from segaudit.types import VOID

CLASS_NAMES = ("sky", "building", "road", "pavement", "tree", "car", "person", "sign")
PALETTE = (
    (128, 128, 128), (128, 0, 0), (128, 64, 128), (60, 40, 222), (128, 128, 0), (64, 0, 128), (64, 64, 0),
    (192, 128, 128),
)  # fmt: skip
SKY, BUILDING, ROAD, PAVEMENT, TREE = range(5)
FAR = 0.04
"""The depth q at which the street ends."""
NEAR = {things.car: 0.3, things.person: 0.36, things.sign: 0.3, things.tree: 0.3, things.clutter: 0.36}
"""The depth q up to which things stand."""


def street(dice: Dice, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One street, H x W x 3, and its labels H x W; the same street at every size of the same shape."""
    scene = _Street(dice, Canvas(dice.fork("texture"), height, width))
    air = scene.sky(dice.fork("sky"))
    scene.ground(dice.fork("ground"))
    scene.walls(dice.fork("walls"))
    scene.haze(air, dice.fork("haze").real(0, 0.06))
    scene.things(dice.fork("things"))
    sensor = dice.fork("sensor")
    noise = sensor.real(0.015, 0.06) * sensor.grain(height, width, 3)
    return scene.canvas.finish(scene.light(dice.fork("light")), noise)


class _Street:
    def __init__(self, dice: Dice, canvas: Canvas) -> None:
        self.canvas = canvas
        aspect = canvas.width / canvas.height
        self.horizon = dice.real(0.36, 0.5)
        self.centre = aspect * dice.real(0.32, 0.68)
        self.x = ((np.arange(canvas.width) + 0.5) / canvas.height - self.centre).astype(np.float32)
        self.y = ((np.arange(canvas.height) + 0.5) / canvas.height - self.horizon).astype(np.float32)
        self.ends = self.centre, aspect - self.centre
        self.sun = dice.pick((-1.0, 1.0)) * dice.real(0.2, 1)
        # Left and right edges of the road, and the walls beyond the pavements.
        self.road = -dice.real(0.6, 1.7), dice.real(0.6, 1.7)
        self.wall = self.road[0] - dice.real(0.7, 1.6), self.road[1] + dice.real(0.7, 1.6)

    def sky(self, dice: Dice) -> Colour:
        """A gradient of some hour and weather, with clouds; returns the colour at the horizon."""
        canvas = self.canvas
        light, kind = dice.real(0.35, 0.9), dice.whole(0, 4)
        high = dice.paint(light, light, 0.08)
        if kind <= 1:
            high = light * dice.real(0.45, 0.8), light * dice.real(0.75, 0.95), light * 1.1
        elif kind == 2:
            high = light * 1.1, light * dice.real(0.65, 0.95), light * dice.real(0.5, 0.9)
        pale = min(0.95, light * dice.real(0.9, 1.3))
        low = pale * dice.real(0.85, 1.08), pale * dice.real(0.88, 1.0), pale * dice.real(0.75, 1.05)
        fall = np.clip((self.y + self.horizon) / self.horizon, 0, 1)[:, None, None]
        canvas.colour[:] = np.array(high, np.float32) * (1 - fall) + np.array(low, np.float32) * fall
        clouds = np.clip((canvas.lumps - dice.real(0.35, 0.8)) * dice.real(0.6, 2.0), 0, 0.6)[..., None]
        canvas.colour += (np.array(dice.paint(0.55, 0.95, 0.05), np.float32) - canvas.colour) * clouds
        canvas.label[:] = canvas.thing[:] = SKY
        return low

    def ground(self, dice: Dice) -> None:
        """Road with its markings between two pavements with their slabs and kerbs."""
        canvas = self.canvas
        first = int(self.horizon * canvas.height + 0.5)
        q = self.y[first:, None]
        side, ahead = self.x / q, np.float32(0.9) / q
        fine = np.minimum(q * 8, 1)  # detail fades where it would be smaller than a pixel
        grain, lumps, flecks = canvas.grain[first:], canvas.lumps[first:], canvas.flecks[first:]

        shade = 0.86 + 0.28 * lumps + dice.real(0.05, 0.22) * grain * (0.3 + 0.7 * fine)
        if dice.chance(0.25):  # mended patches
            shade = np.where(lumps > 0.72, shade * dice.real(0.65, 1.35), shade)
        asphalt, paint = (np.array(dice.paint(*span), np.float32) for span in ((0.16, 0.62, 0.16), (0.65, 0.95, 0.12)))
        road = np.where(self._marks(dice, side, ahead)[..., None], paint, asphalt) * shade[..., None]

        slab, gap = dice.real(0.3, 0.7), dice.real(0.1, 0.16)
        row = np.floor(ahead / slab)
        joints = (_part(side / slab + row * 0.5) < gap) | (_part(ahead / slab) < gap)
        stone = 0.92 + 0.16 * flecks + dice.real(0.05, 0.15) * grain
        stone = stone * (1 - dice.real(0.1, 0.4) * joints * fine)
        kerb = (side > self.road[0] - 0.14) & (side < self.road[1] + 0.14)
        stone = np.where(kerb, stone * dice.real(1.1, 1.4), stone)
        paving = np.array(dice.paint(0.2, 0.72, 0.22), np.float32) * stone[..., None]

        part, inside = (slice(first, None), slice(None)), (side > self.road[0]) & (side < self.road[1])
        canvas.lay(part, inside, road, ROAD)
        canvas.lay(part, ~inside, paving, PAVEMENT)
        if dice.chance(0.6):  # the shadow of one row of houses
            reach = dice.real(-0.5, 1.6)
            dark = side < self.road[0] + reach if self.sun > 0 else side > self.road[1] - reach
            canvas.colour[part][dark] *= np.float32(dice.real(0.45, 0.75))

    def _marks(self, dice: Dice, side: Field, ahead: Field) -> Mask:
        middle = (self.road[0] + self.road[1]) / 2
        marks: Mask = (abs(side - middle) < 0.05) & (_part(ahead / 2) < dice.pick((0.5, 1.0)))
        if dice.chance(0.4):
            for edge in (self.road[0] + 0.15, self.road[1] - 0.15):
                marks |= abs(side - edge) < 0.035
        if dice.chance(0.35):  # a zebra crossing
            near = dice.real(1.8, 6)
            marks |= (ahead > near) & (ahead < near + 1.3) & (_part(side / 0.45) < 0.5)
        return marks

    def walls(self, dice: Dice) -> None:
        """Houses, hedges and gaps along both sides, and what closes the street."""
        if dice.chance(0.75):
            across = (self.x > self.wall[0] * FAR) & (self.x < self.wall[1] * FAR)
            self._wall(dice.fork("end"), np.full_like(self.x, FAR), self.x / np.float32(FAR), across, 1.0)
        for way, (edge, end) in enumerate(zip(self.wall, self.ends, strict=True)):
            q = self.x / np.float32(edge)
            seen = q > FAR
            ahead = np.float32(0.9) / np.where(seen, q, np.float32(1))
            light = 1 + 0.3 * self.sun * (1 - 2 * way)
            start, house = 0.9 * abs(edge) / end - dice.real(0, 3), 0
            while start < 0.9 / FAR:
                own = dice.fork(way, house)
                stop = start + own.real(2.5, 7) * max(1.0, start / 6)
                self._wall(own, q, ahead, seen & (ahead >= start) & (ahead < stop), light)
                start, house = stop, house + 1

    def _wall(self, dice: Dice, q: Field, along: Field, columns: Mask, light: float) -> None:
        """One house, hedge or gap, in the columns that it covers."""
        kind = dice.real(0, 1)
        if kind < 0.15 or not columns.any():
            return
        first, last = np.flatnonzero(columns)[[0, -1]].tolist()
        part = slice(None), slice(first, last + 1)
        q, along = q[part[1]], along[part[1]]
        up = (q - self.y[:, None]) / q
        if kind < 0.3:
            top = dice.real(0.7, 1.6) + 0.5 * self.canvas.lumps[part]
            shade = things.leaves(self.canvas, part) * light
            colour = np.array(things.foliage(dice), np.float32) * shade[..., None]
            self.canvas.lay(part, (up >= 0) & (up < top), colour, TREE)
            return
        height = dice.real(1.9, 6)
        colour = self._facade(dice, along, up, height, np.minimum(q * 10, 1)) * np.float32(light)
        self.canvas.lay(part, (up >= 0) & (up < height), colour, BUILDING)

    def _facade(self, dice: Dice, along: Field, up: Field, top: float, fine: Field) -> Field:
        """Bricks, boards, glass or plaster, with rows of windows, a ground floor and a cornice."""
        wall, pane, frame = dice.paint(0.2, 0.85, 0.35), dice.paint(0.08, 0.75, 0.3), dice.paint(0.3, 0.9, 0.1)
        storey, bay, kind = dice.real(0.8, 1.2), dice.real(0.6, 1.3), dice.whole(0, 3)
        shade = 1 + 0.1 * (up / top - 0.5)
        if kind == 0:
            course = np.floor(up / 0.16)
            joints = (_part(up / 0.16) < 0.25) | (_part(along / 0.34 + course * 0.5) < 0.14)
            shade = shade - 0.3 * joints * fine
        elif kind == 1:
            shade = shade - 0.25 * (_part(up / 0.22) < 0.3) * fine
        face = np.array(wall, np.float32) * shade[..., None].astype(np.float32)
        if dice.chance(0.5):
            face = np.where((up < storey)[..., None], face * np.array(dice.paint(0.6, 1.1, 0.3), np.float32), face)
        tall, wide = (0.88, 0.88) if kind == 2 else (dice.real(0.45, 0.65), dice.real(0.4, 0.65))
        across, height = _part(along / bay), _part(up / storey)
        x, y = abs(across - 0.5), abs(height - 0.52)
        holes = (x < wide / 2) & (y < tall / 2) & (up < top - 0.15)
        inner = (x < wide / 2 - 0.06) & (y < tall / 2 - 0.05)
        lamps = _part(np.floor(along / bay) * 0.37 + np.floor(up / storey) * 0.61) < 0.25
        glass = np.array(pane, np.float32) * (0.75 + 0.5 * height + dice.real(0, 0.6) * lamps)[..., None]
        face = np.where(holes[..., None], np.where(inner[..., None], glass, np.array(frame, np.float32)), face)
        return np.where((up > top - 0.12)[..., None], face * dice.real(0.6, 1.3), face).astype(np.float32)

    def haze(self, air: Colour, thick: float) -> None:
        """Air in front of what is far: towards the colour of the sky at the horizon."""
        left, right = (self.x / np.float32(edge) for edge in self.wall)
        q = np.maximum(np.maximum(left, right), np.maximum(self.y, np.float32(FAR))[:, None])
        share = thick / (thick + q) * (self.canvas.label != SKY)
        self.canvas.colour += (np.array(air, np.float32) - self.canvas.colour) * share[..., None].astype(np.float32)

    def things(self, dice: Dice) -> None:
        """Trees, signs, people, cars and clutter, the far ones first; sometimes the camera's own bonnet."""
        counts = {things.car: (1, 4), things.person: (1, 4), things.sign: (1, 3), things.tree: (0, 3)}
        placed = []
        for draw, span in {**counts, things.clutter: (0, 1)}.items():
            for number in range(dice.whole(*span)):
                way = dice.whole(0, 1)
                place = self.road[way] + (self.wall[way] - self.road[way]) * dice.real(0.2, 0.85)
                if draw is things.car or (draw is things.person and dice.chance(0.3)):
                    place = self.road[way] * dice.real(0.25, 0.75)
                nearest = min(NEAR[draw], self.ends[way] / max(abs(place), 0.3))
                q = max(0.09, dice.real(0.35, 1) * nearest)
                placed.append((q, self.centre + place * q, draw, number))
        for q, x, draw, number in sorted(placed, key=lambda item: item[0]):
            foot = self.horizon + q
            things.shadow(self.canvas, x, foot, q, 1.2 if draw is things.car else 0.5, -0.4 * self.sun)
            draw(self.canvas, dice.fork(draw.__name__, number), x, foot, q, self.sun)
        view = self.canvas.view(self.centre, 1, 1.2, dice.real(0.06, 0.12))
        if dice.chance(0.25) and view:
            self.canvas.begin()
            self.canvas.put(view, view.disc(0, 0, 1, 1), dice.paint(0.1, 0.6, 0.4), VOID, 0.7 + 0.4 * view.v)

    def light(self, dice: Dice) -> Field:
        """Exposure, colour temperature and a fall across the picture, H x W x 3."""
        warm = dice.real(-0.2, 0.2)
        tint = np.array([1 + warm, 1 + dice.real(-0.05, 0.05), 1 - warm], np.float32)
        across = dice.real(0, 0.3) * self.sun * self.x + dice.real(-0.15, 0.15) * self.y[:, None]
        return ((1 + across) * dice.real(0.6, 1.2))[..., None] * tint


def _part(value: Field) -> Field:
    """What is above the next lower whole number."""
    return value - np.floor(value)
