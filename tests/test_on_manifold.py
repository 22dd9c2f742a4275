"""The search among what a generator can make: on manifolds that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segaudit.attacks._iterate import project
from segaudit.attacks.on_manifold import odds, on_manifold
from segaudit.audit import build
from segaudit.defenses.gan_inversion import gan_inversion
from segaudit.models.purifiers import save_purifier
from segaudit.models.purifiers.gan import WGAN
from segaudit.nn.latent import descend
from segaudit.nn.passes import count_passes
from segaudit.rng import ImageStreams, drawing
from segaudit.types import VOID, Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 4
PLAIN = torch.linspace(0.3, 0.7, SIDE * SIDE, dtype=torch.float64)


class Line(nn.Module):
    """Images on a line through one image; with labels each line lies `apart` from the one before, pixel by pixel."""

    latent = 1

    def __init__(self, way: Tensor, classes: int = 0, apart: float = 0.0) -> None:
        super().__init__()
        self.way, self.classes, self.apart = nn.Parameter(way), classes, apart

    def sample(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        off = 0 if labels is None else self.apart * labels[:, None].to(z)
        return (PLAIN.to(z) + z * self.way.to(z) + off).view(-1, 1, SIDE, SIDE)


class Split(Segmenter):
    """Says `yes` where weight . image is above its bias; the logit of `no` is 0."""

    class_names = ("no", "yes")

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), bias

    def forward(self, images: Tensor) -> Tensor:
        yes = 50 * (images.flatten(1) @ self.weight.to(images) - self.bias)
        return torch.stack([torch.zeros_like(yes), yes], 1)[:, :, None, None]


def waves() -> Tensor:
    """Up and down from pixel to pixel, of length 1."""
    way = torch.ones(SIDE * SIDE, dtype=torch.float64)
    way[1::2] = -1
    return way / 4


def problem(**own: Any) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
    """An image on the line, 0.2 along it before what the model says changes: at z = 0.2, with Linf 0.05."""
    way = waves()
    model = Split(way, float(way @ PLAIN) + 0.2)
    images = PLAIN.view(1, 1, SIDE, SIDE)
    return model, images, torch.zeros(1, 1, 1, dtype=torch.int64), {"rng": ImageStreams(0, ["a"]), "steps": 80} | own


def test_it_ends_on_the_manifold_in_the_ball_and_wrong() -> None:
    model, images, labels, own = problem()
    generator = Line(waves())
    for norm, eps in (("linf", 0.06), ("l2", 0.25)):
        made = on_manifold(model, images, labels, eps=eps, norm=norm, generator=generator, **own)
        assert model(made).argmax(1).item() == 1
        delta = (made - images).flatten()
        z = float(delta @ waves())
        assert 0.2 < z <= 0.26
        torch.testing.assert_close(delta, z * waves(), rtol=0, atol=1e-3)  # nothing off the line
    for norm, eps in (("linf", 0.04), ("l2", 0.15)):  # the line leaves the ball before
        made = on_manifold(model, images, labels, eps=eps, norm=norm, generator=generator, **own)
        assert model(made).argmax(1).item() == 0


def test_a_target_is_reached_and_a_void_image_stays_near() -> None:
    model, images, labels, own = problem(generator=Line(waves()))
    made = on_manifold(model, images, 1 - labels, eps=0.06, targeted=True, **own)
    assert model(made).argmax(1).item() == 1
    made = on_manifold(model, images, labels, eps=0.06, targeted=True, **own)
    assert model(made).argmax(1).item() == 0
    made = on_manifold(model, images, torch.full_like(labels, VOID), eps=0.06, **own)
    assert (made - images).abs().max() <= 0.06 + 1e-9


def test_behind_an_inversion_the_bare_model_is_asked_and_the_defended_one_is_wrong() -> None:
    bare, images, labels, own = problem()
    model = gan_inversion(bare, generator=Line(waves()), steps=100, restarts=2)
    with drawing(ImageStreams(0, ["a"])):
        assert model(images).argmax(1).item() == 0
        off = (images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign()).clamp(0, 1)
        assert model(off).argmax(1).item() == 0  # what is off the line is carried back to it
        with count_passes(model) as passes, count_passes(bare) as asked:
            made = on_manifold(model, images, labels, eps=0.06, **own)
        assert (passes.forwards, asked.forwards) == (0, 81 * 4)
        assert model(made).argmax(1).item() == 1
    assert (made - images).abs().max() <= 0.06 + 1e-9


def test_where_the_label_of_an_inversion_is_the_answer_another_label_is_led_to() -> None:
    bare, images, labels, own = problem()
    generator = Line(waves(), classes=2, apart=0.03)
    model = gan_inversion(bare, generator=generator, classify="inversion", steps=100, restarts=2)
    with drawing(ImageStreams(0, ["a"])):
        assert model(images).argmax(1).item() == 0
        made = on_manifold(model, images, labels, eps=0.04, **own)
        assert model(made).argmax(1).item() == 1
        assert (made - images).abs().max() <= 0.04 + 1e-9
        torch.testing.assert_close((made - images).mean(), torch.tensor(0.03).double(), rtol=0, atol=2e-3)
        same = on_manifold(model, images, labels, eps=0.04, targeted=True, **own)
        assert model(same).argmax(1).item() == 0


def test_odds_are_those_of_the_softmax() -> None:
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[[0, 1], [2, VOID]], [[VOID, VOID], [VOID, VOID]]])
    p = logits.softmax(1)
    right = [float(p[0, 0, 0, 0]), float(p[0, 1, 0, 1]), float(p[0, 2, 1, 0])]
    found = odds(logits, labels, targeted=False)
    assert found.tolist() == pytest.approx([-sum(math.log(1 - own) for own in right) / 3, 0])
    found = odds(logits, labels, targeted=True)
    assert found.tolist() == pytest.approx([-sum(math.log(own) for own in right) / 3, 0])


def test_the_search_that_came_furthest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, found = Line(waves(), classes=2, apart=0.01), list[Any]()

    def spy(*args: Any, **own: Any) -> Any:
        found.append(descend(*args, **own))
        return found[-1]

    monkeypatch.setattr("segaudit.attacks.on_manifold.descend", spy)
    model, images, labels, own = problem(generator=generator, restarts=5)
    made = on_manifold(model, images, labels, eps=0.06, **own | {"steps": 3})
    (z, least) = found[0]
    assert z.shape == (2 * 5, 1)
    assert least.unique().numel() > 5
    best = int(least.argmin())
    wanted = project(generator.sample(z[best : best + 1], torch.tensor([best // 5])), images, 0.06, "linf")
    assert torch.equal(made, wanted)


def test_the_audit_hands_it_the_generator_of_a_path(tmp_path: Any) -> None:
    save_purifier(WGAN(size=(8, 8), z=3, width=2), tmp_path / "gan.safetensors")
    given = build.handed("on_manifold", {"generator": str(tmp_path / "gan.safetensors"), "steps": 2})
    images = torch.rand(2, 1, 8, 8)
    model = Split(torch.ones(64).double() / 64, 0.5)
    labels = torch.zeros(2, 1, 1, dtype=torch.int64)
    made = on_manifold(model, images, labels, rng=ImageStreams(0, ["a", "b"]), eps=0.1, **given)
    off = (made - images).abs().amax((1, 2, 3))
    assert ((off > 0.05) & (off <= 0.1 + 1e-6)).all()


def test_wrong_arguments_are_said_in_one_line() -> None:
    model, images, labels, own = problem()
    with pytest.raises(UserError, match=r"^attack 'on_manifold': generator must be the path of a generator's weights"):
        on_manifold(model, images, labels, eps=0.1, **own)
    with pytest.raises(UserError, match=r"^attack 'on_manifold': the generator makes images of 1 x 4 x 4, and these"):
        on_manifold(model, images[:, :, :2], labels, eps=0.1, generator=Line(waves()), **own)
    for key, value in (("rate", 0), ("weight", -1), ("rate", math.nan), ("weight", "2")):
        with pytest.raises(UserError, match=f"^{key} must be a number above 0, not {value!r}$"):
            on_manifold(model, images, labels, eps=0.1, **own | {key: value}, generator=Line(waves()))
    inverted = gan_inversion(model, generator=Line(waves(), classes=2), classify="inversion")
    with pytest.raises(UserError, match=r"^attack 'on_manifold': the answer is the label .* this generator has none;"):
        on_manifold(inverted, images, labels, eps=0.1, generator=Line(waves()), **own)
    with pytest.raises(UserError, match=r"^norm must be linf or l2, not 'l1'$"):
        on_manifold(model, images, labels, eps=0.1, norm="l1", generator=Line(waves()), **own)
