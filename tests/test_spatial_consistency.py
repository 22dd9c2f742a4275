"""Whether patches of an image agree: where they lie, and what they are compared by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detect_kit import Fixed, noise
from nets import problem
from segaudit.defenses.detectors.spatial_consistency import spatial_consistency
from segaudit.rng import ImageStreams, drawing
from segaudit.types import Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def iou(one: Tensor, other: Tensor) -> float:
    """The mean IoU of two maps of classes, over those in either."""
    classes = set(one.flatten().tolist()) | set(other.flatten().tolist())
    pairs = [(one == k, other == k) for k in classes]
    return float(np.mean([float((a & b).sum()) / float((a | b).sum()) for a, b in pairs]))


class Placed(Segmenter):
    """The class of a pixel hangs on its place in what the network is given: no patch agrees with another."""

    class_names = ("a", "b", "c")
    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        places = torch.arange(images.shape[2] * images.shape[3]).view(images.shape[2:])
        return F.one_hot(places % 5 % 3, 3).movedim(2, 0).to(images).expand(len(images), -1, -1, -1) + 0 * images


def test_patches_are_compared_where_they_overlap() -> None:
    """The picture's own values tell where a patch was cut."""
    images = torch.arange(13.0 * 17).view(1, 1, 13, 17).expand(2, 3, -1, -1).double() / 221
    model = Placed()
    with drawing(ImageStreams(0, ("a", "b"), "test")):
        made = spatial_consistency(model, images, pairs=5, size=0.6)
    height, width, scores = 8, 10, []
    assert len(model.seen) == 5
    corners = set()
    for patches in tuple(model.seen):
        guess = model(patches).argmax(1)
        firsts = [divmod(round(float(patch[0, 0, 0]) * 221), 17) for patch in patches]
        corners.update(firsts)
        maps = []
        for (y, x), own in zip(firsts, guess, strict=True):
            maps.append(torch.full((13, 17), -1))
            maps[-1][y : y + height, x : x + width] = own
        for i in range(2):
            one, other = maps[i], maps[i + 2]
            both = (one >= 0) & (other >= 0)
            assert both.sum() >= height * width / 4
            scores.append(1 - iou(one[both], other[both]))
    np.testing.assert_allclose(made.numpy(), np.reshape(scores, (5, 2)).mean(0), atol=1e-12)
    assert len(corners) > 8
    assert made.min() > 0.1


def test_a_model_that_sees_pixels_alone_is_consistent_and_a_classifier_is_refused() -> None:
    images = noise(3, 3, 12, 16)
    assert spatial_consistency(Fixed(), images).abs().max() < 1e-12
    p = problem("classifier")
    with pytest.raises(
        UserError,
        match=r"^detector 'spatial_consistency': it compares maps, and of a patch of 8 x 12 the model gives 1 x 1",
    ):
        spatial_consistency(p.model, p.images)
    for own in ({"pairs": 0}, {"size": 0}, {"size": 1.5}):
        with pytest.raises(UserError, match=f"^detector 'spatial_consistency': {next(iter(own))} must be"):
            spatial_consistency(Fixed(), images, **own)


def test_each_image_has_its_own_patches_whatever_the_batch() -> None:
    p = problem("segmentation")
    made = []
    for rows in ([0, 1, 2, 3], [2]):
        with drawing(ImageStreams(3, [p.ids[i] for i in rows], "test")):
            made.append(spatial_consistency(p.model, p.images[rows]))
    torch.testing.assert_close(made[0][2:3], made[1])
