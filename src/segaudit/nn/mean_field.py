"""Mean-field inference in a dense conditional random field, as a layer with a gradient to scores and picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segaudit.nn.permutohedral import Lattice
from segaudit.types import UserError

LARGE = ("window", "lattice")
"""What the bilateral kernel is on large pictures: cut off, or approximate."""
PAIRS = 2**24
"""Pairs of pixels whose kernel is held at once; one of no more is made once for all steps."""
Kernel = Callable[[], Iterable[tuple[Any, Tensor]]]
"""Gives the kernel in parts, each with where it belongs."""
Message = Callable[[Tensor], Tensor]
"""Beliefs N x K x H x W -> for each pixel the mean of the others', weighted by the kernel."""
ASIDE = 1e-3
"""Of a deviation: how far pixels are moved on the lattice. Black ones and the first row would lie just between
simplices, where rounding decides which corners there are."""
LEAST = 1e-6
"""Of the sum of a pixel's kernel: one that is like no other gets no message, and no division by zero."""


class MeanField(nn.Module):
    """Logits N x K x H x W and the picture N x C x H x W in [0, 1] -> logits after some mean-field steps.

    Two Gaussian kernels between all pairs of different pixels: spatial (spatial_width, pixels) and bilateral
    (position_width, pixels; colour_width, of 255). Each message is a mean: it is divided by the sum of its kernel.
    steps: in eval mode; train_steps: in training. spatial_weight, bilateral_weight: of the messages, one a class;
    with the compatibility of classes (Potts: 1 where they differ) they are parameters where `learned`, else fixed.
    exact: up to how many pixels the bilateral kernel takes all pairs. large: on larger pictures it takes the pairs
    within a square of `window` pixels, or all pairs, and each pixel with itself, approximately, on a `lattice`. The
    spatial kernel is always exact. Memory is bounded: a large kernel is made in parts, anew at each step and for the
    gradient, which is of the first order alone.
    Source: Krähenbühl & Koltun 2011; as layers, with 5 steps in training and 10 in a test: Zheng et al. 2015, whose
    released configuration the other defaults are; the window: Teichmann & Cipolla 2019; the lattice: Adams et al. 2010.
    """

    weights: Tensor
    compatibility: Tensor

    def __init__(
        self,
        classes: int,
        *,
        steps: int = 10,
        train_steps: int = 5,
        spatial_width: float = 3.0,
        position_width: float = 160.0,
        colour_width: float = 3.0,
        spatial_weight: float = 3.0,
        bilateral_weight: float = 5.0,
        learned: bool = True,
        exact: int = 4096,
        window: int = 11,
        large: str = "window",
    ) -> None:
        super().__init__()
        if window % 2 == 0:
            raise UserError(f"window must be an odd number of pixels, not {window}")
        if large not in LARGE:
            raise UserError(f"large must be {' or '.join(LARGE)}, not {large!r}")
        self.steps, self.train_steps = steps, train_steps
        self.spatial_width, self.position_width, self.colour_width = spatial_width, position_width, colour_width
        self.exact, self.radius, self.large = exact, window // 2, large
        weights = torch.tensor([[float(spatial_weight)], [float(bilateral_weight)]]).repeat(1, classes)
        for name, value in (("weights", weights), ("compatibility", 1 - torch.eye(classes))):
            if learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Logits of the same shape."""
        if logits.shape[2:] != image.shape[2:]:
            raise ValueError(f"logits {tuple(logits.shape)} and picture {tuple(image.shape)} are of different sizes")
        with torch.autocast(logits.device.type, enabled=False):  # a kernel in bfloat16 is none
            unary = logits.to(torch.promote_types(logits.dtype, torch.float32))
            bilateral = self._bilateral(image.to(unary.dtype) * (255 / self.colour_width))
            weights, compatibility = self.weights.to(unary.dtype)[..., None, None], self.compatibility.to(unary.dtype)
            made = unary
            for _ in range(self.train_steps if self.training else self.steps):
                belief = made.softmax(1)
                weighted = weights[0] * self._spatial(belief) + weights[1] * bilateral(belief)
                made = unary - torch.einsum("kl,nlhw->nkhw", compatibility, weighted)
        return made

    def _spatial(self, belief: Tensor) -> Tensor:
        """Exact, as the kernel is one along the rows times one along the columns."""
        rows, columns = (_gaussian(side, self.spatial_width, belief) for side in belief.shape[2:])
        around = rows.sum(1)[:, None] * columns.sum(1) - 1
        return (rows @ belief @ columns - belief) / around.clamp_min(LEAST)

    def _bilateral(self, colours: Tensor) -> Message:
        """Made once for all steps, as far as memory allows."""
        small = colours[0, 0].numel() <= self.exact
        if self.large == "lattice" and not small:
            return _on_lattice(Lattice(_features(colours, self.position_width) + ASIDE))
        radius = None if small else self.radius
        kernel = _bilateral_kernel(colours.detach(), self.position_width, radius)
        return partial(_mean, colours=colours, kernel=kernel, radius=radius)


def _on_lattice(lattice: Lattice) -> Message:
    around = lattice.count()
    return lambda belief: (lattice(belief.flatten(2).mT) / around).mT.reshape(belief.shape)


def _mean(belief: Tensor, *, colours: Tensor, kernel: Kernel, radius: int | None) -> Tensor:
    counted = torch.cat([belief, torch.ones_like(belief[:, :1])], 1)
    found: Tensor = _Bilateral.apply(counted, colours, kernel, radius)
    return found[:, :-1] / found[:, -1:].clamp_min(LEAST)


class _Bilateral(torch.autograd.Function):
    """Each pixel's sum over the others, weighted by the kernel: N x C x H x W. radius: of the square; None: all pairs.

    Its own backward, as what autograd would keep of every part of the kernel is far larger than the kernel.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, colours: Tensor, kernel: Kernel, radius: int | None) -> Tensor:
        ctx.save_for_backward(values, colours)
        ctx.kernel, ctx.radius = kernel, radius
        if radius is None:
            flat = values.flatten(2)
            return torch.cat([flat @ part.mT for _, part in kernel()], 2).view(values.shape)
        total, beyond = torch.zeros_like(values), F.pad(values, (radius,) * 4)
        for place, part in kernel():
            total.addcmul_(part, beyond[place])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        # The kernel is symmetric: to the values goes what the forward does. Of a pair of pixels, each is moved away
        # from the other's colour by the kernel times how much one's slope is along the other's values, both ways.
        values, colours = ctx.saved_tensors
        to_values, to_colours = values.new_zeros(values.shape), colours.new_zeros(colours.shape)
        if ctx.radius is None:
            v, g, c = values.flatten(2), slope.flatten(2), colours.flatten(2)
            for own, part in ctx.kernel():
                to_values.view(v.shape)[..., own] = g @ part.mT
                push = (g[..., own].mT @ v).add_(v[..., own].mT @ g).mul_(part)
                to_colours.view(c.shape)[..., own] = c @ push.mT - c[..., own] * push.sum(2)[:, None]
        else:
            v, g, c = (F.pad(x, (ctx.radius,) * 4) for x in (values, slope, colours))
            for place, part in ctx.kernel():
                to_values.addcmul_(part, g[place])
                push = (slope * v[place]).addcmul_(values, g[place]).sum(1, keepdim=True).mul_(part)
                to_colours.addcmul_(push, c[place] - colours)
        return to_values, to_colours, None, None


def _bilateral_kernel(colours: Tensor, width: float, radius: int | None) -> Kernel:
    """The kernel, kept where it is small, otherwise made anew whenever it is asked for."""
    count = colours[0, 0].numel()
    make: Kernel = partial(_rows if radius is None else partial(_shifts, radius=radius), colours, width)
    if len(colours) * count * (count if radius is None else (2 * radius + 1) ** 2) > PAIRS:
        return make
    held = list(make())
    return lambda: held


def _rows(colours: Tensor, width: float) -> Iterator[tuple[slice, Tensor]]:
    """The kernel between all pairs, N x some x H W, for some of the pixels after the other."""
    features = _features(colours, width)
    count = features.shape[1]
    step = max(1, PAIRS // (count * len(features)))
    for start in range(0, count, step):
        own = slice(start, min(start + step, count))
        # Differences, and not products of matrices, which cancel in float32.
        apart = torch.cdist(features[:, own], features, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = apart.square_().mul_(-0.5).exp_()
        kernel.diagonal(start, 1, 2).zero_()
        yield own, kernel


def _features(colours: Tensor, width: float) -> Tensor:
    """Each pixel's place and colour in standard deviations, N x H W x (2 + C)."""
    y, x = (torch.arange(side, dtype=colours.dtype, device=colours.device) / width for side in colours.shape[2:])
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")).expand(len(colours), -1, -1, -1)
    return torch.cat([grid, colours], 1).flatten(2).mT.contiguous()


def _shifts(colours: Tensor, width: float, radius: int) -> Iterator[tuple[Any, Tensor]]:
    """For each shift within a square: where the shifted picture is in one with an edge, and the kernel N x 1 x H x W.

    Outside of the picture the kernel means nothing: the values there are to be zero.
    """
    height, length = colours.shape[2:]
    beyond = F.pad(colours, (radius,) * 4)
    for dy, dx in product(range(-radius, radius + 1), repeat=2):
        if dx or dy:
            part = ..., slice(radius + dy, radius + dy + height), slice(radius + dx, radius + dx + length)
            apart = (colours - beyond[part]).square_().sum(1, keepdim=True)
            yield part, apart.add_((dy * dy + dx * dx) / width**2).mul_(-0.5).exp_()


def _gaussian(side: int, width: float, like: Tensor) -> Tensor:
    """The kernel between the places of a line, side x side."""
    places = torch.arange(side, dtype=like.dtype, device=like.device) / width
    return (-((places[:, None] - places) ** 2) / 2).exp()
