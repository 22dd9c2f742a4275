"""The proximity operator of the Linf norm inside the image box, in a diagonal metric."""

from __future__ import annotations

import torch
from torch import Tensor

HALVINGS = 20
"""They leave a millionth of the interval, which is 1 wide at most."""
DIMS = (1, 2, 3)


def linf(delta: Tensor, weight: Tensor, metric: Tensor, clean: Tensor) -> Tensor:
    """argmin over x of weight ||x||_inf + 1/2 sum_i metric_i (x_i - delta_i)^2 with 0 <= clean + x <= 1, an image each.

    delta, clean, metric: N x C x H x W, metric above 0. weight: N x 1 x 1 x 1. The result is `delta` in the box, cut
    at a bound; the bound is where the entries that it cuts pull as hard as the weight. It is found to 1e-6 of the
    largest entry by bisection, whose cost does not depend on the data, and then exactly where the pull is linear.
    """
    boxed = torch.clamp(delta, -clean, 1 - clean)
    room, pull = boxed.abs(), metric * delta.abs()
    cut = torch.empty_like(room)

    def sums(bound: Tensor) -> tuple[Tensor, Tensor]:
        torch.gt(room, bound, out=cut)  # in floats: much faster than booleans
        return (cut * pull).sum(DIMS, keepdim=True), cut.mul_(metric).sum(DIMS, keepdim=True)

    high = room.amax(DIMS, keepdim=True)
    low = torch.zeros_like(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        pulled, stiffness = sums(middle)
        above = pulled - stiffness * middle > weight
        low, high = middle.where(above, low), high.where(above, middle)
    pulled, stiffness = sums(low)  # between low and high the pull is linear, but for entries that lie there
    exact = torch.clamp((pulled - weight) / stiffness.clamp_min(torch.finfo(delta.dtype).tiny), low, high)
    return torch.clamp(boxed, -exact, exact)
