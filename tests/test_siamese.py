"""The contrastive loss and its embedding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segaudit.models.purifiers import build, load_purifier, save_purifier
from segaudit.models.purifiers.siamese import Siamese
from segaudit.rng import ImageStreams
from segaudit.training.siamese import contrastive, nearest, siamese
from segaudit.types import VOID, Batch, UserError

pytestmark = pytest.mark.usefixtures("one_thread")


class Bars:
    """8 x 8 images of upright and of level bars, at random places, in noise."""

    def __init__(self, count: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.images, self.labels = 0.2 * torch.rand(count, 1, 8, 8, generator=rng), torch.arange(count) % 2
        places = torch.randint(8, (count,), generator=rng)
        for image, label, place in zip(self.images, self.labels, places, strict=True):
            (image[0] if label else image[0].mT)[place] = 1
        self.ids = tuple(f"bar {i}" for i in range(count))

    def sample(self, image_id: str) -> tuple[Tensor, Tensor]:
        row = self.ids.index(image_id)
        return self.images[row], self.labels[row].view(1, 1)

    def batch(self) -> Batch:
        return Batch(self.images, self.labels.view(-1, 1, 1), self.ids)


def net(**own: Any) -> Siamese:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Siamese(**{"size": (8, 8), "features": 4, "width": 4} | own)


def test_the_loss_of_known_places() -> None:
    places = torch.tensor([[0.0, 0], [3, 4], [0, 2], [3, 4.5]]).double()
    labels = torch.tensor([0, 0, 1, 1])
    same = (5**2 + (3**2 + 2.5**2)) / 2
    others = ((6 - 2) ** 2 + (6 - 29.25**0.5) ** 2 + (6 - 13**0.5) ** 2 + (6 - 0.5) ** 2) / 4
    assert float(contrastive(places, labels, 6.0)) == pytest.approx((same + others) / 2)
    near = (0 + 0 + 0 + 0.5**2) / 4  # a margin of 1: one pair of two classes alone is nearer
    assert float(contrastive(places, labels, 1.0)) == pytest.approx((same + near) / 2)
    assert float(contrastive(places[:2], labels[:2], 1.0)) == pytest.approx(25 / 2)
    hidden = torch.tensor([0, 0, VOID, VOID])
    assert float(contrastive(places, hidden, 6.0)) == pytest.approx(25 / 2)
    with pytest.raises(UserError, match="recipe siamese: a batch holds no pair of images with labels"):
        contrastive(places, torch.full((4,), VOID), 1.0)


def test_places_that_fall_together_have_a_finite_slope() -> None:
    places = torch.ones(3, 2, requires_grad=True)
    contrastive(places, torch.tensor([0, 0, 1]), 1.0).backward()
    assert places.grad is not None
    assert places.grad.isfinite().all()


def test_a_few_steps_put_each_class_near_itself() -> None:
    model, train, held_out = net(), Bars(24, 1), Bars(16, 2)
    before = nearest(model, held_out)["nearest"]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        loss = siamese(model.train(), train.batch(), rng=ImageStreams(0, train.ids), margin=2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = nearest(model, held_out, batch=5)["nearest"]
    assert after == nearest(model, held_out, batch=16)["nearest"]
    assert after >= max(0.9, before)


def test_nearest_is_a_share_that_can_be_counted() -> None:
    class Place(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :1]

    bars = Bars(5, 0)
    bars.images[:, 0, 0, 0] = torch.tensor([0.0, 0.1, 0.3, 0.9, 0.35])  # labels 0 1 0 1 0: only 0.3 and 0.35 are right
    assert nearest(Place(), bars)["nearest"] == pytest.approx(2 / 5)


def test_noise_is_added_where_it_is_asked_for() -> None:
    bars, model = Bars(6, 0), net()
    rng = ImageStreams(0, bars.ids)
    found = siamese(model, bars.batch(), rng=rng, sigma=0.3)
    noisy = bars.images + 0.3 * ImageStreams(0, bars.ids).child("noise").normal(bars.images)
    torch.testing.assert_close(found, contrastive(model(noisy), bars.labels, 1.0))
    clean = siamese(model, bars.batch(), rng=rng)
    torch.testing.assert_close(clean, contrastive(model(bars.images), bars.labels, 1.0))


def test_it_is_saved_and_built_again(tmp_path: Any) -> None:
    for shape in ((1, 8, 8), (3, 9, 15)):
        model = build("siamese", shape, 10, {"features": 5, "width": 3}).eval()
        images = torch.rand(3, *shape)
        made = model(images)
        assert made.shape == (3, 5)
        torch.testing.assert_close(model(images[1:2]), made[1:2])
        save_purifier(model, tmp_path / "net.safetensors")
        assert torch.equal(load_purifier(tmp_path / "net.safetensors")(images), made)


def test_wrong_arguments_are_said_in_one_line() -> None:
    bars, model = Bars(4, 0), net()
    for own, said in (
        ({"margin": 0}, "margin must be a number above 0, not 0"),
        ({"sigma": -1}, "sigma must be a number of at least 0, not -1"),
        ({"margin": True}, "margin must be a number above 0, not True"),
    ):
        with pytest.raises(UserError, match=f"^recipe siamese: {said}$"):
            siamese(model, bars.batch(), rng=ImageStreams(0, bars.ids), **own)
    maps = Batch(bars.images, torch.zeros(4, 8, 8, dtype=torch.int64), bars.ids)
    with pytest.raises(UserError, match="it needs one label for each image, and that of bar 0 is a map of 8 x 8"):
        siamese(model, maps, rng=ImageStreams(0, bars.ids))
    with pytest.raises(UserError, match="purifier 'siamese': features must be a whole number of at least 1, not 0"):
        net(features=0)
