"""The images that attacks and detectors are fitted on: others than those that are scored."""

from __future__ import annotations

import hashlib

from segaudit.audit import build
from segaudit.audit.parts import Part
from segaudit.audit.spec import RunSpec
from segaudit.data.base import Dataset
from segaudit.types import UserError

DETECTION = "detection"
"""What fitted detectors are called among the attacks."""


def digests(spec: RunSpec, data: Dataset) -> dict[str, str]:
    """Of the images that each fitted attack of a spec learns from, by its label, and its detectors, by `DETECTION`.

    Raises UserError where they cannot be had, are of other classes, or where one of them is scored too.
    """
    parts = [(attack.label(), f"attack {attack.label()!r}", attack.fit_data(spec.data)) for attack in spec.attacks]
    if spec.detection is not None:
        parts.append((DETECTION, DETECTION, spec.detection.fit_data(spec.data)))
    return {key: _held_out(name, part, data).digest() for key, name, part in parts if part is not None}


def _held_out(name: str, part: Part, scored: Dataset) -> Dataset:
    """The data set to fit on, which shares no image with the one that is scored."""
    mend = "say which with `fit: {split: ...}` or `fit: {only: [...]}`"
    try:
        own = build.dataset(part)
    except UserError as error:
        raise UserError(f"{name} is fitted on images of its own, which cannot be had ({error}); {mend}") from error
    if own.class_names != scored.class_names:
        raise UserError(f"{name}: the images to fit it on are of other classes than those that are scored; {mend}")
    known = {_pixels(scored, one) for one in scored.ids}  # as read: an id or a size may be another one
    for one in own.ids:
        if _pixels(own, one) in known:
            raise UserError(f"{name} would be fitted on {one}, which is scored too; {mend}, of other images")
    return own


def _pixels(data: Dataset, image_id: str) -> bytes:
    return hashlib.sha256(data.read(image_id)[0].tobytes()).digest()
