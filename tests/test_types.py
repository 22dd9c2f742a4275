"""The types that every room shares refuse what does not fit together."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from segaudit import types
from segaudit.types import VOID, Batch, Counts, Norms, Records

IMAGES = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60).view(3, 4, 5)
IDS = ("a", "b", "c")


def test_a_batch_is_images_labels_and_ids() -> None:
    batch = Batch(IMAGES, LABELS, IDS)
    assert len(batch) == 3
    part = batch[1:]
    assert part.ids == ("b", "c")
    assert torch.equal(part.images, IMAGES[1:])
    assert torch.equal(part.labels, LABELS[1:])
    moved = batch.to("meta")
    assert (moved.images.device.type, moved.labels.device.type, moved.ids) == ("meta", "meta", IDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.ids = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("labels", "ids"), [(LABELS[:, :1, :1], IDS), (LABELS[:0], ()), (torch.full((3, 4, 5), VOID), IDS)]
)
def test_a_batch_may_be_of_a_classifier_empty_or_void(labels: torch.Tensor, ids: tuple[str, ...]) -> None:
    assert len(Batch(IMAGES[: len(ids)], labels, ids)) == len(ids)


@pytest.mark.parametrize(
    ("images", "labels", "ids", "fault"),
    [
        (IMAGES[0], LABELS, IDS, r"images must be float N x C x H x W, not torch.float32 \(3, 4, 5\)"),
        ((IMAGES * 255).byte(), LABELS, IDS, "images must be float N x C x H x W, not torch.uint8"),
        (IMAGES, LABELS[0], IDS, r"labels must be int64 N x H x W, not torch.int64 \(4, 5\)"),
        (IMAGES, LABELS.byte(), IDS, "labels must be int64 N x H x W, not torch.uint8"),
        (IMAGES, LABELS[:2], IDS, "3 images, 2 labels and 3 ids"),
        (IMAGES, LABELS, IDS[:2], "3 images, 3 labels and 2 ids"),
        (IMAGES, LABELS[:, :3], IDS, r"labels \(3, 3, 5\) do not fit images \(3, 3, 4, 5\)"),
        (IMAGES, LABELS[:, :1], IDS, r"labels \(3, 1, 5\) do not fit images"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(images: Any, labels: Any, ids: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Batch(images, labels, ids)


def test_a_segmenter_counts_its_classes_and_must_have_a_forward() -> None:
    class Named(types.Segmenter):
        class_names = ("sky", "road", "car")

    with pytest.raises(TypeError, match="forward"):
        Named()
    Named.__abstractmethods__ = frozenset()
    assert Named().num_classes == 3


def test_records_are_as_long_as_their_ids() -> None:
    zero = torch.zeros(2, 3, dtype=torch.int64).numpy()
    row = torch.zeros(2, dtype=torch.float64).numpy()
    counts, norms = Counts(zero, zero, zero), Norms(row, row, row.astype(int))
    assert len(Records(("a", "b"), counts, counts, norms, norms, None, row.astype(int), row, row, row, row)) == 2


def test_the_types_import_nothing_of_ours() -> None:
    files = Path(types.__file__).parent.glob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    ours = [module for module in modules if (module or "segaudit").startswith("segaudit")]
    assert "torch" in modules
    assert {"segaudit.types.contracts", "segaudit.types.rows"} == set(ours)
