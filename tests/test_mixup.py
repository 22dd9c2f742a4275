"""The mixup recipe, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nets import KINDS
from segaudit.rng import ImageStreams
from segaudit.training.mixup import mixed_loss, mixup
from segaudit.training.standard import standard
from segaudit.types import VOID, Batch, UserError
from train_kit import batch_of, net

pytestmark = pytest.mark.usefixtures("one_thread")


def streams(batch: Batch, epoch: int = 0) -> ImageStreams:
    return ImageStreams(0, batch.ids, f"train/{epoch}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dice", [0, 0.5])
def test_all_of_one_image_is_the_plain_loss_and_none_of_it_the_other_s(kind: str, dice: float) -> None:
    batch, model = batch_of(kind), net(kind).train()
    own: dict[str, Any] = {"class_weights": [1.0, 3.0, 0.5, 2.0, 1.5][: KINDS[kind]], "dice": dice}
    plain = standard(model, batch, rng=streams(batch), **own)
    rolled = Batch(batch.images.roll(-1, 0), batch.labels.roll(-1, 0), batch.ids)
    for cut in (False, True) if kind != "classifier" else (False,):
        torch.testing.assert_close(mixed_loss(model, batch, 1.0, cut, **own), plain)
        torch.testing.assert_close(
            mixed_loss(model, batch, 0.0, cut, **own), standard(model, rolled, rng=streams(batch), **own)
        )
        assert abs(float(mixed_loss(model, batch, 0.5, cut, **own).detach() - plain.detach())) > 1e-5


def test_images_and_losses_are_mixed_alike() -> None:
    batch, model = batch_of("segmentation"), net().eval()
    total = 0.0
    for row in range(4):
        other = (row + 1) % 4
        logs = model((0.3 * batch.images[row] + 0.7 * batch.images[other])[None]).log_softmax(1)[0]
        for place, share in ((row, 0.3), (other, 0.7)):
            labels = batch.labels[place]
            for y, x in (labels != VOID).nonzero().tolist():
                total -= share * float(logs[labels[y, x], y, x].detach())
    mean = total / int((batch.labels != VOID).sum()) * 1.0
    assert float(mixed_loss(model, batch, 0.3, False).detach()) == pytest.approx(mean, rel=1e-4)


def test_a_cut_is_the_left_of_one_and_the_right_of_the_other() -> None:
    batch, seen = batch_of("segmentation"), list[Tensor]()
    model = net().eval()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    loss = mixed_loss(model, batch, 0.4, True)
    edge = round(0.4 * 23)
    labels = batch.labels.clone()
    for row in range(4):
        other = (row + 1) % 4
        assert torch.equal(seen[0][row, :, :, :edge], batch.images[row, :, :, :edge])
        assert torch.equal(seen[0][row, :, :, edge:], batch.images[other, :, :, edge:])
        labels[row, :, edge:] = batch.labels[other, :, edge:]
    torch.testing.assert_close(loss, standard(model, Batch(seen[0], labels, batch.ids), rng=streams(batch)))


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_the_share_is_of_beta(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, shares = batch_of("binary"), list[float]()

    def kept(model: Any, batch: Batch, share: float, cut: bool, **_: Any) -> Tensor:
        shares.append(share)
        return torch.zeros(())

    monkeypatch.setattr("segaudit.training.mixup.mixed_loss", kept)
    model = net("binary")
    for epoch in range(600):
        mixup(model, batch, rng=streams(batch, epoch), alpha=alpha)
    found = torch.tensor(shares)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(found.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)
    assert 0 <= min(shares) < 0.1 < 0.9 < max(shares) <= 1
    mixup(model, batch, rng=streams(batch, 0), alpha=alpha)
    assert shares[-1] == shares[0]


@pytest.mark.parametrize(
    ("own", "fault"),
    [
        ({"cut": "left"}, "recipe mixup: cut must be true or false, not 'left'"),
        ({"alpha": 0}, "recipe mixup: alpha must be a number above 0, not 0"),
        ({"dice": -1}, "recipe: dice must be a number of at least 0, not -1"),
    ],
)
def test_bad_arguments_are_one_line(own: dict[str, Any], fault: str) -> None:
    batch = batch_of("segmentation")
    with pytest.raises(UserError) as error:
        mixup(net(), batch, rng=streams(batch), **own)
    assert str(error.value) == fault


def test_one_image_has_none_to_be_mixed_with() -> None:
    batch = batch_of("segmentation", 1)
    with pytest.raises(UserError, match="recipe mixup: a batch of one image has no other to mix it with; give a"):
        mixup(net(), batch, rng=streams(batch))


def test_an_image_of_one_label_cannot_be_cut() -> None:
    batch = batch_of("classifier")
    with pytest.raises(UserError, match="recipe mixup: an image with one label cannot be cut; leave `cut` out"):
        mixup(net("classifier"), batch, rng=streams(batch), cut=True)
