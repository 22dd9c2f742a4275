"""Gaussian sums over points of several dimensions in time linear in their number, on the permutohedral lattice."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segaudit.types import UserError

ROOM = 2**62
"""Places that the corners of a batch's lattice can be told apart by."""


class Lattice:
    """Points N x P x D in standard deviations; called with values N x P x C it gives, at each point, a sum of them.

    The weights are about exp(-distance^2 / 2), up to a common factor; the point itself is among them, and no item of
    the batch sees another. A value is shared out to the D + 1 corners of the simplex that its point lies in, blurred
    along the D + 1 axes of the lattice, and read where the points are. Corners of no point's simplex are left out, and
    with them what would be blurred through them: the fewer the points, the less goes far. It costs about P D^2 C.
    The gradient, of the first order alone, is exact to the values, and to the points within their simplices; where a
    point leaves its simplex other corners are kept, and the sums jump a little.
    Raises UserError where the points reach too far for their places to be numbered.
    Source: Adams, Baek & Davis 2010; as the kernel of a dense CRF Krähenbühl & Koltun 2011.
    """

    def __init__(self, points: Tensor) -> None:
        self._shape = points.shape[:2]
        raised = points.flatten(0, 1) @ _raise(points.shape[2]).to(points)
        with torch.no_grad():
            order, whole = _simplex(raised)
            keys, axes = _keys(order, whole, len(points))
            found, place = keys.flatten().sort(stable=True)
            fresh = torch.ones_like(found, dtype=torch.bool)
            torch.ne(found[1:], found[:-1], out=fresh[1:])
            corners = torch.empty_like(found).scatter_(0, place, fresh.cumsum(0) - 1)
            self._corners = corners.view(keys.shape).int()
            ends = torch.tensor([len(found)] * 2, device=found.device)  # the last bag is empty: what lies nowhere
            self._starts = torch.cat([fresh.nonzero().flatten(), ends]).int()
            self._around = [_around(found[fresh], axis) for axis in axes.tolist()]
            self._halves = points.new_tensor([0.5, 1, 0.5]).repeat(len(self._starts) - 1, 1)
        inside = raised.gather(1, order) - whole  # D + 1 numbers from the lowest to the highest, less than 1 apart
        self._shares = torch.cat([1 - inside[:, -1:] + inside[:, :1], inside.diff(dim=1)], 1)
        self._owners = (place // keys.shape[1]).int()
        self._spread = self._shares.detach().flatten()[place]

    def __call__(self, values: Tensor) -> Tensor:
        """N x P x C to N x P x C."""
        found: Tensor = _Sum.apply(values.flatten(0, 1).contiguous(), self._shares, self)
        return found.view(values.shape)

    def count(self) -> Tensor:
        """The sum of the weights at each point, N x P x 1."""
        return self(self._spread.new_ones(*self._shape, 1))

    def blurred(self, values: Tensor, *, back: bool = False) -> Tensor:
        """Values at the points, R x C, on the corners and a last one of zeros; back: the axes in the other order."""
        on = F.embedding_bag(
            self._owners, values, self._starts, mode="sum", per_sample_weights=self._spread, include_last_offset=True
        )
        for around in reversed(self._around) if back else self._around:
            on = F.embedding_bag(around, on, mode="sum", per_sample_weights=self._halves)
        return on

    def read(self, on: Tensor) -> Tensor:
        """At the points what is on the corners, R x C."""
        return F.embedding_bag(self._corners, on, mode="sum", per_sample_weights=self._shares.detach())

    def along(self, values: Tensor, on: Tensor) -> Tensor:
        """The products of each point's values with those of its corners, R x (D + 1)."""
        with torch.enable_grad():  # what the shares' slopes would be; no row is gathered for it
            shares = self._shares.detach().requires_grad_()
            read = F.embedding_bag(self._corners, on, mode="sum", per_sample_weights=shares)
        return torch.autograd.grad(read, shares, values)[0]


class _Sum(torch.autograd.Function):
    """The sums of values R x C with shares R x (D + 1), whose own backward keeps no step of the blur."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shares: Tensor, lattice: Lattice) -> Tensor:
        on = lattice.blurred(values)
        ctx.lattice = lattice
        ctx.save_for_backward(*((values, on) if ctx.needs_input_grad[1] else ()))
        return lattice.read(on)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor | None, None]:
        slope = slope.contiguous()
        back = ctx.lattice.blurred(slope, back=True)
        if not ctx.needs_input_grad[1]:
            return ctx.lattice.read(back), None, None
        values, on = ctx.saved_tensors  # a share is met twice: where values are shared out, and where they are read
        to_shares = ctx.lattice.along(torch.cat([slope, values], 1), torch.cat([on, back], 1))
        return ctx.lattice.read(back), to_shares, None


def _raise(dims: int) -> Tensor:
    """D x (D + 1): to the plane of coordinates that sum to 0, scaled so that the blur has a deviation of 1."""
    made = torch.zeros(dims, dims + 1, dtype=torch.float64)
    for j in range(dims):
        made[j, : j + 1], made[j, j + 1] = 1, -(j + 1)
        made[j] *= math.sqrt(2 / 3 / ((j + 1) * (j + 2)))
    return made


def _simplex(raised: Tensor) -> tuple[Tensor, Tensor]:
    """The order of the coordinates by what the simplex's first corner leaves of them, and that corner, so ordered.

    Both R x (D + 1). The coordinates of a first corner are whole and sum to 0.
    """
    count = raised.shape[1]
    whole = raised.round()
    order = (raised - whole).argsort(stable=True, dim=1)
    # Rounding leaves the plane by a few wholes: as many of the coordinates that were rounded furthest go back by one.
    turned = torch.arange(count, device=raised.device) + whole.sum(1, keepdim=True).long()
    back = turned.div(count, rounding_mode="floor")
    order = order.gather(1, turned - back * count)
    return order, whole.gather(1, order) - back


def _keys(order: Tensor, whole: Tensor, items: int) -> tuple[Tensor, Tensor]:
    """A number for the place of each corner, R x (D + 1), and what a step along each axis adds to it, D + 1.

    A step along the j-th axis adds 1 to the j-th of D coordinates, one along the last takes 1 from each; the corners of
    a simplex are a step apart, along the axes in the order given.
    """
    first = torch.empty_like(whole).scatter_(1, order, whole).long()
    first = first[:, -1:] - first[:, :-1]
    first -= first.amin(0) - 2  # a corner is at most 1 beyond the first ones, and its neighbour 2
    axes, room = [], 1
    for side in (first.amax(0) + 3).tolist():
        axes.append(room)
        room *= side
    if room * items > ROOM:
        raise UserError("the kernel is too narrow for a lattice over this picture: choose larger widths")
    steps = torch.tensor([*axes, -sum(axes)], device=order.device)
    item = torch.arange(items, device=order.device).repeat_interleave(len(order) // items)
    start = (first * steps[:-1]).sum(1) + item * room
    return start[:, None] + F.pad(steps[order[:, :-1]].cumsum(1), (1, 0)), steps


def _around(keys: Tensor, step: int) -> Tensor:
    """For each of M sorted corners the one a step behind, itself and the one ahead, (M + 1) x 3; M: there is none."""
    count = len(keys)
    own = torch.arange(count + 1, dtype=torch.int32, device=keys.device)
    at = torch.searchsorted(keys, keys + step, out_int32=True).clamp_(max=count - 1)
    at[keys[at] != keys + step] = count
    ahead = F.pad(at, (0, 1), value=count)
    behind = torch.full_like(own, count).scatter_(0, ahead.long(), own)
    behind[count] = count
    return torch.stack([behind, own, ahead], 1)
