"""scikit-learn's digits: what they are, how they are split, and what is said where they are not there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from segaudit import registry
from segaudit.data import digits as room
from segaudit.data.digits import digits
from segaudit.types import UserError


def test_images_and_labels_are_those_of_scikit_learn() -> None:
    found = load_digits()
    for split in ("train", "test"):
        data = digits(split)
        assert data.image_labels
        assert data.class_names == tuple("0123456789")
        for name in data.ids[::101]:
            image, label = data.sample(name)
            row = int(name.removeprefix("digits-"))
            assert image.shape == (1, 8, 8)
            assert image.dtype == torch.float32
            np.testing.assert_allclose(image[0].numpy(), found.images[row] / 16, atol=0.5 / 255 + 1e-6)
            assert label.tolist() == [[found.target[row]]]


def test_the_splits_are_stratified_and_share_no_image() -> None:
    train, test = digits("train"), digits()
    assert (len(train.ids), len(test.ids)) == (1437, 360)
    assert len({*train.ids, *test.ids}) == 1797
    truth = torch.cat([test.sample(name)[1] for name in test.ids]).flatten()
    assert torch.bincount(truth).tolist() == [36] * 10
    assert list(test.ids) == sorted(test.ids)
    assert int(test.ids[-1].removeprefix("digits-")) > 1700  # from all over the set, whose writers come one by one
    assert digits().digest() == test.digest() != train.digest()


def test_it_takes_what_any_data_set_takes() -> None:
    data = registry.load("data", "digits")(split="train", size=[12, 10], limit=5)
    assert len(data.ids) == 5
    assert data.batch(data.ids).images.shape == (5, 1, 12, 10)
    assert digits("train", only=[data.ids[2]]).ids == (data.ids[2],)
    with pytest.raises(UserError, match=r"no split 'tset' \(did you mean 'test'\?\); there are: train, test"):
        digits("tset")


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    room._digits.cache_clear()
    room._splits.cache_clear()
    with pytest.raises(UserError, match=r"data digits needs scikit-learn: pip install 'segaudit\[digits\]'"):
        digits()
