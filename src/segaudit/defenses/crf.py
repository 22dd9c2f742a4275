"""A dense conditional random field over a model's map of classes."""

from __future__ import annotations

from torch import Tensor

from segaudit.defenses._check import choice, real, whole
from segaudit.nn.mean_field import MeanField
from segaudit.types import Segmenter

GRADIENTS = ("full", "logits")
"""Through the logits and the picture that guides them, or through the logits alone."""


def crf(
    model: Segmenter,
    *,
    steps: int = 5,
    spatial_width: float = 3.0,
    position_width: float = 160.0,
    colour_width: float = 3.0,
    spatial_weight: float = 3.0,
    bilateral_weight: float = 5.0,
    exact: int = 4096,
    gradient: str = "full",
) -> Segmenter:
    """Dense CRF: mean-field steps let pixels that are near, or near and of like colour, agree on a class.

    spatial_width, position_width: standard deviations in pixels, of the spatial kernel and of the bilateral one, whose
    colour_width is in 255ths. spatial_weight, bilateral_weight: of the two messages, each the mean of the others'
    beliefs; 0 for both changes nothing. exact: up to how many pixels all pairs are taken; a larger picture's bilateral
    kernel is filtered on the permutohedral lattice, as in the field's own code, with each pixel in its own mean.
    gradient: full, through the logits and the picture that guides them; logits, as if the picture were fixed, as the
    public operation has it, which hides a part of the gradient from the attack (masking). A classifier's 1 x 1 map has
    no neighbours and stays as it is.
    Source: Krähenbühl & Koltun 2011; under attack Arnab et al. 2018.
    """
    count = whole("crf", "steps", steps, 1)
    field = MeanField(
        model.num_classes,
        steps=count,
        train_steps=count,
        spatial_width=real("crf", "spatial_width", spatial_width, above=0),
        position_width=real("crf", "position_width", position_width, above=0),
        colour_width=real("crf", "colour_width", colour_width, above=0),
        spatial_weight=real("crf", "spatial_weight", spatial_weight, least=0),
        bilateral_weight=real("crf", "bilateral_weight", bilateral_weight, least=0),
        learned=False,
        exact=whole("crf", "exact", exact, 0),
        large="lattice",
    )
    return Smoothed(model, field, choice("crf", "gradient", gradient, GRADIENTS))


class Smoothed(Segmenter):
    """A model whose map goes through a mean field that its picture guides."""

    def __init__(self, model: Segmenter, field: MeanField, gradient: str) -> None:
        super().__init__()
        self.model, self.field, self.gradient, self.class_names = model, field, gradient, model.class_names

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W, those of the model less the penalties of the last step."""
        logits: Tensor = self.model(images)
        if logits.shape[2:] == (1, 1):
            return logits
        smoothed: Tensor = self.field(logits, images if self.gradient == "full" else images.detach())
        return smoothed
