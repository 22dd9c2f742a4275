"""The adversarial recipe: cross-entropy on images that are attacked as the network stands now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segaudit.training.standard import standard
from segaudit.types import Batch, Segmenter, Streams, UserError

SLACK = 1e-6
"""How far float32 arithmetic may carry an image out of [0, 1]."""


def adversarial(
    model: Segmenter,
    batch: Batch,
    *,
    rng: Streams,
    attack: Callable[..., Tensor],
    share: float = 1.0,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    dice: float = 0.0,
) -> Tensor:
    """Cross-entropy where a share of each batch is attacked and the rest is clean: PGD-AT, SegPGD-AT, PIR-AT.

    attack: its name with its arguments, among them its eps: `{name: pgd, eps: 4/255, steps: 3}`; it sees the network in
    eval mode, and the weights as they are. share: above 0 and up to 1, of the batch (at least one image of it). PGD-AT
    is pgd with share 1, SegPGD-AT segpgd with share 0.5, PIR-AT either of them from the `weights` of a robust backbone.
    Raises UserError for another share, and for an attack whose images are none.
    Source: Madry et al. 2018 (PGD-AT); Gu et al. 2022 (SegPGD-AT); Croce et al. 2024 (PIR-AT).
    """
    _check(share=share)
    rows = torch.arange(max(1, round(share * len(batch))))  # an epoch's order is random, so these are any images
    part = batch[: len(rows)]
    made = attacked(model, part, attack, rng.child("attack")[rows])
    images = torch.cat([made, batch.images[len(rows) :]]).contiguous(memory_format=torch.channels_last)
    mixed = Batch(images, batch.labels, batch.ids)
    return standard(model, mixed, rng=rng, class_weights=class_weights, label_smoothing=label_smoothing, dice=dice)


def _check(*, share: Any = 1.0, **others: Any) -> None:
    """Refuse numbers that cannot be. Raises UserError."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise UserError(f"recipe adversarial: share must be above 0 and at most 1, not {share!r}")
    standard.check(**others)  # type: ignore[attr-defined]


adversarial.check = _check  # type: ignore[attr-defined]


def attacked(
    model: Segmenter, batch: Batch, attack: Callable[..., Tensor], rng: Streams, recipe: str = "adversarial"
) -> Tensor:
    """The images of a batch, attacked on a model that is in training, which sees nothing of it.

    The attack sees the model in eval mode, and the weights as they are. Raises UserError for images that are none.
    """
    device = batch.images.device.type
    view = _View(model, torch.is_autocast_enabled(device))
    with torch.autocast(device, enabled=False), _still(view):  # steps and projections are float32 in any case
        made = attack(view, batch.images, batch.labels, rng=rng)
    if not isinstance(made, Tensor) or made.shape != batch.images.shape:
        what = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UserError(f"recipe {recipe}: the attack returned {what} for images {tuple(batch.images.shape)}")
    made = made.detach()
    if not (made.min() >= -SLACK and made.max() <= 1 + SLACK):
        raise UserError(f"recipe {recipe}: the attack left [0, 1] or returned NaN; if the loss grew, lower lr")
    return made.to(batch.images.dtype)


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients of weights inside the block; then every module and weight is as it was before."""
    modes = [(module, module.training) for module in model.modules()]
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval()
    for weight in learnt:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for weight in learnt:
            weight.requires_grad_(True)


class _View(Segmenter):
    """The network as the attack sees it: in the arithmetic of the training, with float32 logits."""

    def __init__(self, model: Segmenter, bf16: bool) -> None:
        super().__init__()
        self.class_names, self.model, self.bf16 = model.class_names, model, bf16

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W of images in [0, 1]."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            logits: Tensor = self.model(images)
        return logits.to(images.dtype, memory_format=torch.contiguous_format)  # sums over classes are faster there
