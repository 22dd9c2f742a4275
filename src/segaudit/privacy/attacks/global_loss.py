"""One number an image, one threshold for all: the loss."""

from __future__ import annotations

import numpy as np
from torch import Generator

from segaudit.privacy.attacks._evidence import own_shadows, settled, told
from segaudit.privacy.experiment import Experiment, Scored

NAME = "global_loss"


def global_loss(experiment: Experiment, *, rng: Generator) -> Scored:
    """Global loss: a member is who has at most the mean loss of the shadows on their own training images.

    The score is minus the mean cross-entropy over the valid pixels. The threshold is one for all images and classes;
    without shadows the attack only ranks. An image without a valid pixel scores the threshold, or the median of the
    others.
    Source: Yeom et al. 2018; on segmentation Chobola et al. 2022.
    """
    threshold = None
    if shadows := own_shadows(experiment):
        losses, inside = told(shadows, NAME, lambda signals: signals["loss"])
        threshold = float(np.nextafter(-losses[inside].mean(), -np.inf))  # a loss equal to the mean is a member's
    return Scored(settled(-experiment.victim.signals(experiment.candidates)["loss"], threshold), threshold)
