"""CRF-RNN: a dense conditional random field as the last layers of another network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from segaudit.models.build import Network
from segaudit.models.classic._parts import choose
from segaudit.models.wrap import Wrapped
from segaudit.nn.mean_field import MeanField
from segaudit.types import Segmenter, UserError


def crf_rnn(
    outputs: int,
    *,
    base: str = "fcn8s",
    width: float = 1.0,
    base_args: Mapping[str, Any] | None = None,
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
) -> Network:
    """Mean-field steps on the scores of another network of `classic`, guided by the picture and trained with it.

    base, width, base_args: the network below. The rest is MeanField's: steps in a test and in training, kernel widths
    in pixels and in 8-bit colours, weights, learned or fixed, and up to how many pixels all pairs are taken. The
    network takes pictures in [0, 1] and normalises them itself, as the guide is the picture: leave `preprocess` out.
    Parameters: the paper has no count; here the base's, 2 C weights of kernels and C^2 of compatibility for C classes.
    Source: Zheng et al. 2015.
    """
    from segaudit.models.classic import SEGMENTERS, classic

    choose("crf_rnn", "base", base, SEGMENTERS)
    if outputs < 2:
        raise UserError(f"classic crf_rnn: the classes compete, so it must have at least 2 outputs, not {outputs}")
    if not isinstance(base_args, Mapping | None):
        raise UserError(f"classic crf_rnn: base_args must be the base's arguments by name, not {base_args!r}")
    below = classic(base, outputs, **{"width": width, **(base_args or {})})
    field = MeanField(
        outputs,
        steps=steps,
        train_steps=train_steps,
        spatial_width=spatial_width,
        position_width=position_width,
        colour_width=colour_width,
        spatial_weight=spatial_weight,
        bilateral_weight=bilateral_weight,
        learned=learned,
        exact=exact,
        window=window,
    )
    return Network(CrfRnn(Wrapped(below.net, [str(k) for k in range(outputs)], **below.preprocess), field))


class CrfRnn(nn.Module):
    """Scores at the picture's size, and the mean field on them."""

    def __init__(self, base: Segmenter, field: MeanField) -> None:
        super().__init__()
        self.base, self.field = base, field

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the input's size of pictures in [0, 1]."""
        logits: Tensor = self.field(self.base(images), images)
        return logits
