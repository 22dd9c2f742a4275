"""The real MNIST and CIFAR-10, where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from segaudit.data.cifar10 import CLASS_NAMES, cifar10
from segaudit.data.mnist import mnist

ROOT = Path(os.environ.get("SEGAUDIT_DATA", Path(__file__).parents[2] / "shared" / "data"))

pytestmark = pytest.mark.real


@pytest.mark.parametrize(("split", "count"), [("train", 60000), ("test", 10000)])
def test_mnist_holds_its_digits(split: str, count: int) -> None:
    data = mnist(str(ROOT / "mnist"), split)
    assert len(data) == count
    part = [data.sample(name) for name in data.ids[:: count // 1000]]
    images, labels = torch.stack([image for image, _ in part]), torch.cat([label.flatten() for _, label in part])
    assert images.shape[1:] == (1, 28, 28)
    assert torch.bincount(labels, minlength=10).min() > 60
    # a digit's mean picture is nearer to its own images than another's: labels and images are in step
    means = torch.stack([images[labels == digit].mean(0) for digit in range(10)])
    nearest = (images[:, None] - means).flatten(2).norm(dim=2).argmin(1)
    assert (nearest == labels).float().mean() > 0.7


def test_cifar_folders_are_what_torchvision_reads() -> None:
    data = cifar10(str(ROOT / "cifar10"), "test")
    assert len(data) == 2000
    theirs = datasets.ImageFolder(str(ROOT / "cifar10" / "test"))
    assert tuple(theirs.classes) == CLASS_NAMES
    for i in range(0, 2000, 97):
        picture, label = theirs[i]
        image, own = data.sample(data.ids[i])
        assert own.item() == label
        assert (image * 255).round().byte().permute(1, 2, 0).flatten().tolist() == list(picture.tobytes())
