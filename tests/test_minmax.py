"""The min-max recipe: what its adversary sees, learns and changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from defense_kit import Seen
from segaudit.nn.output_net import OutputNet
from segaudit.rng import ImageStreams
from segaudit.training.loop import Progress, Views, fit
from segaudit.training.minmax import _MinMax, minmax
from segaudit.training.standard import standard
from segaudit.types import VOID, Batch, UserError
from train_kit import Drawn, batch_of, equal, net, schedule, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def split(kind: str = "segmentation") -> tuple[Drawn, list[str], Any, tuple[str, ...]]:
    """Sixteen images to train on, a note of what is read, and eight for the reference, of 30."""
    samples, log = Drawn(kind, 30, 1), list[str]()
    return samples, log, Seen(samples, samples.ids[:16], log), samples.ids[16:24]


def checkpoint(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)["course"]
    return state


@pytest.mark.parametrize("kind", ["segmentation", "classifier"])
def test_the_adversary_sees_members_and_the_reference_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, log, train, reference = split(kind)
    sets = list[tuple[str, ...]]()
    real = _MinMax._answers

    def watched(self: Any, batch: Batch) -> Any:
        sets.append(batch.ids)
        assert all(module.training for module in self.model.modules())
        found = real(self, batch)
        assert all(module.training for module in self.model.modules())
        assert not found.requires_grad
        return found

    monkeypatch.setattr(_MinMax, "_answers", watched)
    own = schedule(epochs=2, augment={"flip": False})
    fit(net(kind), train, None, partial(minmax, reference=reference, adversary_steps=2), own, tmp_path)
    assert len(sets) == 2 * 2 * 2 * 2  # epochs, steps, the adversary's steps, sides
    assert all(set(ids) <= set(train.ids) and len(set(ids)) == 8 for ids in sets[::2])
    assert all(set(ids) <= set(reference) and len(set(ids)) == 8 for ids in sets[1::2])
    assert set(log) == {*train.ids, *reference}
    assert checkpoint(tmp_path)["drawn"] == 8


def test_the_reference_is_seen_in_the_views_of_its_epoch_as_members_are() -> None:
    """In the same views all the time it would be told from the members by them alone."""
    samples, log, train, reference = split()
    own = schedule(augment={"scale": [0.5, 2.0]})
    made = _MinMax(partial(minmax, reference=reference), train, own, net(), None, None, torch.enable_grad())
    wanted = Views(Seen(samples, reference, log), own)
    for epoch in (0, 3):
        made.epoch = wanted.epoch = epoch
        found = made._others(5)
        assert len(set(found.ids)) == 5
        for image, labels, name in zip(found.images, found.labels, found.ids, strict=True):
            view = wanted[reference.index(name)]
            assert torch.equal(image, view[0])
            assert torch.equal(labels, view[1])


@pytest.mark.parametrize(
    ("ids", "fault"),
    [
        ((), "recipe minmax: the reference is empty; give it other images than those, by their ids"),
        (("segmentation 20", "segmentation 3"), "recipe minmax: the reference holds segmentation 3, which is trained"),
    ],
)
def test_a_reference_that_is_trained_on_is_refused(ids: tuple[str, ...], fault: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=fault):
        fit(net(), split()[2], None, partial(minmax, reference=ids), schedule(), tmp_path)


def test_the_loss_is_the_plain_one_and_what_the_adversary_takes_for_members() -> None:
    batch, model = batch_of("segmentation"), net().eval()
    torch.manual_seed(0)
    adversary, rng = OutputNet(5), ImageStreams(0, batch.ids)
    plain = standard(model, batch, rng=rng, dice=0.5)
    taken = torch.stack([adversary(model(batch.images[i : i + 1]), batch.labels[i : i + 1])[0] for i in range(4)])
    found = minmax(model, batch, rng=rng, weight=3.0, adversary=adversary, dice=0.5)
    torch.testing.assert_close(found, plain + 3 * (1 / (1 + (-taken).exp())).mean())
    slopes = torch.autograd.grad(found - plain, model.head.weight)[0]
    assert slopes.abs().max() > 1e-6
    with pytest.raises(UserError, match="recipe minmax: it is the training loop that has an adversary; train with it"):
        minmax(model, batch, rng=rng)


def test_without_weight_it_is_the_standard_training_and_with_weight_another(tmp_path: Path) -> None:
    own, found = schedule(epochs=2), {}
    recipes = {"standard": standard} | {
        f"{weight}": partial(minmax, reference=split()[3], weight=weight, adversary_lr=0.01) for weight in (0, 5.0)
    }
    for name, recipe in recipes.items():
        model = net()
        fit(model, split()[2], None, recipe, own, tmp_path / name)
        found[name] = weights(model)
    for key, value in found["standard"].items():
        torch.testing.assert_close(found["0"][key], value)
    assert not all(torch.allclose(found["5.0"][key], value, atol=1e-3) for key, value in found["standard"].items())
    fresh, learnt = checkpoint(tmp_path / "0")["adversary"], checkpoint(tmp_path / "5.0")["adversary"]
    assert not equal(fresh, learnt)


def test_the_adversary_learns_to_tell_members_from_the_reference() -> None:
    """Members' logits are sure of their masks, the reference's are not; the network itself is never stepped."""
    _, _, train, reference = split("binary")
    own, model = schedule(epochs=1), net("binary")

    class Sure(_MinMax):
        def _answers(self, batch: Batch) -> Any:
            sure = torch.nn.functional.one_hot(batch.labels.clamp_max(1), 2).movedim(3, 1).float()
            return sure * (8.0 if batch.ids[0] in train.ids else 0.5)

    recipe = partial(minmax, reference=reference, adversary_lr=0.01, adversary_steps=30)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    class Plain:
        def backward(self, loss: Any) -> None:
            loss.backward()

        def clip_grad_norm_(self, *_: Any) -> None:
            pass

    made = Sure(recipe, train, own, model, optimizer, Plain(), torch.enable_grad())
    samples = Drawn("binary", 30, 1)
    batch = Batch(samples.images[:8], samples.labels[:8], samples.ids[:8])
    before = {key: value.clone() for key, value in made.adversary.state_dict().items()}
    made.step(batch, ImageStreams(0, batch.ids))
    assert not equal(before, made.adversary.state_dict())
    others = made._others(8)
    with torch.no_grad():
        inside = made.adversary(made._answers(batch), batch.labels).sigmoid()
        outside = made.adversary(made._answers(others), others.labels).sigmoid()
    assert inside.min() > 0.8
    assert outside.max() < 0.2
    assert all(weight.requires_grad for weight in made.adversary.parameters())


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    own = schedule(epochs=3, batch=4, augment={"scale": [0.8, 1.25]})
    recipe = partial(minmax, reference=split()[3], weight=2.0, adversary_lr=0.01)

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 2):
            raise Killed

    whole, parts = net(), net(seed=9)
    fit(whole, split()[2], None, recipe, own, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(net(), split()[2], None, recipe, own, tmp_path / "parts", kill)
    fit(parts, split()[2], None, recipe, own, tmp_path / "parts")
    assert equal(weights(parts), weights(whole))
    assert equal(checkpoint(tmp_path / "parts")["adversary"], checkpoint(tmp_path / "whole")["adversary"])


def test_the_adversary_sees_each_image_by_itself_and_nothing_of_void() -> None:
    batch = batch_of("segmentation")
    torch.manual_seed(0)
    adversary, logits = OutputNet(5), torch.randn(4, 5, 17, 23)
    found = adversary(logits, batch.labels)
    assert found.shape == (4,)
    torch.testing.assert_close(adversary(logits[2:3], batch.labels[2:3]), found[2:3])
    other = logits + 3 * torch.randn(4, 5, 17, 23) * (batch.labels == VOID)[:, None]
    torch.testing.assert_close(adversary(other, batch.labels), found)
    assert not torch.allclose(adversary(logits + 3 * torch.randn(4, 5, 17, 23), batch.labels), found)


@pytest.mark.parametrize(
    ("own", "fault"),
    [
        ({"weight": -1}, "weight must be a number of at least 0, not -1"),
        ({"adversary_lr": 0}, "adversary_lr must be a number above 0, not 0"),
        ({"adversary_steps": 0}, "adversary_steps must be a whole number of at least 1, not 0"),
        ({"reference": "segmentation 20"}, "reference must be a list of ids, not 'segmentation 20'"),
    ],
)
def test_bad_arguments_are_one_line(own: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        fit(net(), split()[2], None, partial(minmax, **{"reference": split()[3], **own}), schedule(), tmp_path)
    assert str(error.value) == f"recipe minmax: {fault}"
