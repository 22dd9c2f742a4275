"""Inversion of a generator: against least squares, where it is linear; and what a defense must keep to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segaudit.audit import build
from segaudit.audit.parts import Part
from segaudit.defenses._filter import purified
from segaudit.defenses.eot import EOT, draws_of
from segaudit.defenses.gan_inversion import Inverted, gan_inversion
from segaudit.models.purifiers import save_purifier
from segaudit.models.purifiers.gan import CWGAN
from segaudit.models.purifiers.siamese import Siamese
from segaudit.nn.latent import descend
from segaudit.rng import ImageStreams, drawing, is_random
from segaudit.types import Segmenter, UserError

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE, LATENT, LABELS = 4, 3, 4


class Affine(nn.Module):
    """A generator whose images of a label are 0.5 plus a subspace of its own."""

    latent = LATENT

    def __init__(self, classes: int = LABELS, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.classes = classes
        self.base = nn.Parameter(
            torch.randn(max(1, classes), SIDE * SIDE, LATENT, generator=rng, dtype=torch.float64) / 20
        )

    def sample(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        assert (labels is None) == (not self.classes)
        base = self.base[torch.zeros(len(z), dtype=torch.int64) if labels is None else labels]
        return 0.5 + (base @ z[:, :, None]).view(-1, 1, SIDE, SIDE)

    def nearest(self, image: Tensor, label: int) -> Tensor:
        """By least squares."""
        base = self.base[label].detach()
        found = torch.linalg.lstsq(base, (image - 0.5).flatten()[:, None]).solution
        return 0.5 + (base @ found).view(1, SIDE, SIDE)


class Waves(Affine):
    """With as many valleys as there are waves in sight."""

    def sample(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().sample(torch.sin(3 * z) + 0.1 * z, labels)


class Dense(Segmenter):
    """A linear classifier."""

    class_names = tuple(f"class {k}" for k in range(LABELS))

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(SIDE * SIDE, LABELS, generator=rng, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) @ self.weight)[:, :, None, None]


def some(count: int = 3, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 0.5 + 0.1 * torch.randn(count, 1, SIDE, SIDE, generator=rng, dtype=torch.float64)


def streams(count: int = 3, seed: int = 0) -> ImageStreams:
    return ImageStreams(seed, [f"image {i}" for i in range(count)], "test")


def behind(generator: Any = None, **own: Any) -> Any:
    return gan_inversion(Dense(), generator=Affine() if generator is None else generator, **{"restarts": 2} | own)


def found(model: Any, images: Tensor, rng: ImageStreams | None = None) -> Tensor:
    with drawing(streams(len(images)) if rng is None else rng):
        made: Tensor = model.search(images)[0]
    return made


def test_what_is_found_is_the_nearest_image_of_each_label() -> None:
    generator, images = Affine(), some()
    made = found(behind(generator, steps=400), images)
    assert made.shape == (3, LABELS, 1, SIDE, SIDE)
    for i in range(3):
        for k in range(LABELS):
            torch.testing.assert_close(made[i, k], generator.nearest(images[i], k), rtol=0, atol=1e-4)
    plain = Affine(0)
    made = found(behind(plain, steps=400), images)
    torch.testing.assert_close(made[1, 0], plain.nearest(images[1], 0), rtol=0, atol=1e-4)


def test_an_image_of_the_generator_is_found_with_its_label() -> None:
    generator = Affine()
    labels = torch.tensor([2, 0, 3, 1, 1])
    z = torch.randn(5, LATENT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    images = generator.sample(z, labels).detach()
    model = behind(generator, classify="inversion", steps=400)
    with drawing(streams(5)):
        logits = model(images)
    assert logits.shape == (5, LABELS, 1, 1)
    assert torch.equal(logits.argmax(1).flatten(), labels)
    assert logits.amax(1).abs().max() < 1e-6
    made = found(model, images)
    torch.testing.assert_close(made[torch.arange(5), labels], images, rtol=0, atol=1e-3)


def test_the_logits_of_an_inversion_are_minus_the_squared_distances() -> None:
    generator, images = Affine(), some()
    with drawing(streams()):
        logits = behind(generator, classify="inversion", steps=400)(images)
    for i in range(3):
        for k in range(LABELS):
            wanted = -float((images[i] - generator.nearest(images[i], k)).square().sum())
            assert float(logits[i, k]) == pytest.approx(wanted, abs=1e-6)


def test_a_prior_is_that_of_ridge_regression() -> None:
    generator, images, weight = Affine(), some(), 0.02
    with drawing(streams()):
        logits = behind(generator, classify="inversion", steps=400, prior=weight)(images)
    made = found(behind(generator, steps=400, prior=weight), images)
    for i in range(3):
        for k in range(LABELS):
            base, wanted = generator.base[k].detach(), (images[i] - 0.5).flatten()
            z = torch.linalg.solve(base.mT @ base + weight * torch.eye(LATENT, dtype=torch.float64), base.mT @ wanted)
            torch.testing.assert_close(made[i, k].flatten(), 0.5 + base @ z, rtol=0, atol=1e-4)
            cost = (base @ z - wanted).square().sum() + weight * z.square().sum()
            assert float(logits[i, k]) == pytest.approx(-float(cost), abs=1e-6)
            assert (base @ z - wanted).square().sum() > 1e-4 + (
                generator.nearest(images[i], k) - images[i]
            ).square().sum()


def test_the_model_is_asked_about_the_nearest_image_of_all() -> None:
    generator, images = Affine(), some()
    model = behind(generator, steps=400)
    with drawing(streams()):
        logits = model(images)
    for i in range(3):
        near = torch.stack([generator.nearest(images[i], k) for k in range(LABELS)])
        best = near[(near - images[i]).square().flatten(1).sum(1).argmin()]
        torch.testing.assert_close(logits[i], model.model(best[None])[0], rtol=0, atol=1e-3)


def test_the_picture_of_what_it_makes_is_what_the_model_saw() -> None:
    images = some()
    for own in ({}, {"classify": "inversion"}):
        model = behind(Waves(), steps=6, **own)
        with drawing(streams()):
            logits = model(images)
        with drawing(streams()):
            seen = purified(model, images)
        assert seen is not None
        off = (seen - images).square().flatten(1).sum(1)
        if own:
            torch.testing.assert_close(off, -logits.flatten(1).amax(1), rtol=0, atol=1e-12)
        else:
            torch.testing.assert_close(model.model(seen), logits, rtol=0, atol=1e-12)
        assert off.min() > 1e-4


def test_the_gradient_goes_straight_through_to_the_model() -> None:
    model, images = behind(steps=5), some().requires_grad_()
    with drawing(streams()):
        logits = model(images)
    (slope,) = torch.autograd.grad(logits[:, 1].sum(), images)
    torch.testing.assert_close(slope.flatten(1), model.model.weight[:, 1].expand(3, -1))


def test_the_gradient_of_an_inversion_is_that_of_the_distance_to_the_subspace() -> None:
    generator, images = Affine(), some().requires_grad_()
    with drawing(streams()):
        logits = behind(generator, classify="inversion", steps=400)(images)
    for k in range(LABELS):
        (slope,) = torch.autograd.grad(logits[:, k].sum(), images, retain_graph=True)
        near = torch.stack([generator.nearest(image, k) for image in images.detach()])
        torch.testing.assert_close(slope, -2 * (images.detach() - near), rtol=0, atol=1e-3)


@pytest.mark.parametrize("halvings", [0, 2])
def test_a_batch_is_as_one_image_one_label_and_one_start_after_another(halvings: int) -> None:
    generator, images = Waves(), some()
    own = {"steps": 16, "restarts": 4, "halvings": halvings}
    made = found(behind(generator, **own), images)
    torch.testing.assert_close(found(behind(generator, rows=1, **own), images), made, rtol=0, atol=1e-9)
    for i in range(3):
        alone = found(behind(generator, **own), images[i : i + 1], streams()[torch.tensor([i])])
        torch.testing.assert_close(alone[0], made[i], rtol=0, atol=1e-9)
    if halvings:
        return
    starts = streams().normal(torch.empty(3, 4, LATENT, dtype=torch.float64))
    for i in range(3):
        for k in range(LABELS):
            label, tries = torch.tensor([k]), []
            for start in starts[i]:

                def objective(z: Tensor, _: Tensor, i: int = i, label: Tensor = label) -> Tensor:
                    return (generator.sample(z, label) - images[i]).square().flatten(1).sum(1)

                tries.append(descend(objective, start[None], steps=16, rate=0.1))
            z, off = min(tries, key=lambda own: float(own[1]))
            assert float(max(own[1] for own in tries)) > float(off)
            torch.testing.assert_close(made[i, k], generator.sample(z, label)[0], rtol=0, atol=1e-9)


def test_halving_leaves_the_worse_half_where_it_is_and_spends_less() -> None:
    asked, seen = list[int](), dict[int, set[int]]()
    goal = torch.tensor([0.0, 5, 1, 3, 2, 9, 8, 7])  # how far each start stays from what is sought: two groups of four

    def objective(z: Tensor, rows: Tensor) -> Tensor:
        asked.append(len(rows))
        seen[len(asked)] = set(rows.tolist())
        return (z - 1).square().sum(1) + goal[rows]

    z, least = descend(objective, torch.zeros(8, 2), steps=8, rate=0.5, starts=4, halvings=2)
    assert asked == [8, 8, 4, 4, 2, 2, 2, 2, 2]  # marks after 2 and after 4 of the 8 steps
    assert seen[3] == {0, 2, 4, 7}
    assert seen[5] == {0, 4}
    assert least[0] < least[2] < least[3]
    assert (z[0] != z[1]).all()
    assert torch.equal(z[1], z[3])
    huge = descend(objective, torch.zeros(8, 2), steps=8, rate=0.5, starts=4, halvings=10**18)[1]
    torch.testing.assert_close(huge[[0, 4]], least[[0, 4]], rtol=0, atol=0.5)  # all starts at once: it comes back
    asked.clear()
    every = descend(objective, torch.zeros(8, 2), steps=8, rate=0.5, starts=4)[1]
    assert asked == [8] * 9
    torch.testing.assert_close(every[[0, 4]], least[[0, 4]])


def test_a_descent_keeps_the_best_point_and_a_nan() -> None:
    def objective(z: Tensor, rows: Tensor) -> Tensor:
        return (z[:, 0] - 0.3).square().masked_fill(rows == 1, torch.nan)

    z, least = descend(objective, torch.zeros(2, 1), steps=3, rate=5.0)
    assert (float(z[0]), float(least[0])) == (0, pytest.approx(0.09))  # every step went too far
    assert least[1].isnan()
    z, least = descend(objective, torch.zeros(1, 1), steps=200, rate=0.1)
    assert float(z) == pytest.approx(0.3, abs=1e-3)


def test_starts_are_drawn_anew_in_every_pass_from_the_images_own_streams() -> None:
    model, images = behind(Waves(), steps=3, restarts=1, eot=4), some()
    with drawing(streams()):
        first, second = model(images), model(images)
    with drawing(streams()):
        again = model(images)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert is_random(model)
    assert draws_of(model) == 4
    with drawing(streams()):
        mean = EOT(model, 2)(images)
    assert mean.shape == first.shape
    with drawing(streams()):
        rows = model(images.repeat_interleave(2, 0))
    torch.testing.assert_close(mean, rows.view(3, 2, LABELS, 1, 1).mean(1))


def test_it_works_where_no_gradients_are_kept_and_leaves_no_trace() -> None:
    generator, images = Affine(), some()
    model = behind(generator, steps=400)
    kept = generator.base.clone()
    with torch.no_grad(), drawing(streams()):
        scored = model(images)
    with drawing(streams()):
        torch.testing.assert_close(model(images), scored)
    assert not scored.requires_grad
    assert torch.equal(generator.base, kept)
    assert generator.base.grad is None


def test_siamese_similarity_is_what_is_compared_where_it_is_given() -> None:
    class Upper(nn.Module):
        """Sees the upper half alone."""

        def forward(self, images: Tensor) -> Tensor:
            return images[:, :, : SIDE // 2].flatten(1)

    generator, images = Affine(), some()
    model = behind(generator, siamese=Upper(), steps=600, classify="inversion")
    made = found(model, images)
    base = generator.base.detach()[:, : SIDE * SIDE // 2]
    for i in range(3):
        for k in range(LABELS):
            wanted = torch.linalg.lstsq(base[k], (images[i, 0, : SIDE // 2] - 0.5).flatten()[:, None]).solution
            image = 0.5 + (generator.base[k].detach() @ wanted).view(1, SIDE, SIDE)
            torch.testing.assert_close(made[i, k, :, : SIDE // 2], image[:, : SIDE // 2], rtol=0, atol=1e-3)
    with drawing(streams()):
        logits = model(images)
    wanted = -(made - images[:, None])[:, :, :, : SIDE // 2].square().flatten(2).sum(2)
    torch.testing.assert_close(logits[:, :, 0, 0], wanted, rtol=0, atol=1e-9)


def test_a_spec_s_paths_become_the_networks(tmp_path: Path) -> None:
    size = {"channels": 1, "size": (8, 8)}
    save_purifier(CWGAN(**size, classes=3, z=4, width=2, embedding=2), tmp_path / "gan.safetensors")
    save_purifier(Siamese(**size, features=3, width=2), tmp_path / "siamese.safetensors")

    class Mean(Segmenter):
        class_names = ("a", "b", "c")

        def forward(self, images: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(images, 1).repeat(1, 3, 1, 1)

    args = {"generator": str(tmp_path / "gan.safetensors"), "siamese": str(tmp_path / "siamese.safetensors")}
    for own in ({}, {"classify": "inversion"}):
        model = build.defended(Mean(), Part(name="gan_inversion", args=args | {"steps": 2, "restarts": 2} | own))
        assert isinstance(model, Inverted)
        with drawing(streams(2)):
            assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3, 1, 1)
    model = build.defended(Mean(), Part(name="gan_inversion", args={"generator": args["generator"]}))
    with pytest.raises(UserError, match="defense 'gan_inversion': the generator makes images of 1 x 8 x 8, and these"):
        model(torch.rand(1, 1, 9, 8))


def test_a_network_that_gives_images_back_is_no_embedding() -> None:
    model = behind(siamese=nn.Conv2d(1, 1, 1).double(), steps=1)
    with pytest.raises(UserError, match=r"siamese must give each image a row of numbers, .* gives \(1, 4, 4\)"):
        found(model, some())


def test_wrong_arguments_are_said_in_one_line() -> None:
    for own, said in (
        ({"generator": 3}, "generator must be the path of a generator's weights, as `segaudit train` left them with"),
        ({"generator": Dense()}, "recipe wgan_gp, not a Dense"),
        ({"siamese": 0.5}, "siamese must be the path of a Siamese network's weights, not 0.5"),
        ({"classify": "label"}, "classify must be model or inversion, not 'label'"),
        ({"classify": "inversion", "generator": Affine(0)}, "and this is one without labels; train purifier `cwgan`"),
        ({"classify": "inversion", "generator": Affine(7)}, "for each of the 4 classes, and this is one of 7"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"restarts": 1.5}, "restarts must be a whole number of at least 1, not 1.5"),
        ({"halvings": -1}, "halvings must be a whole number of at least 0, not -1"),
        ({"rate": 0}, "rate must be a number above 0, not 0"),
        ({"prior": -1}, "prior must be a number of at least 0, not -1"),
        ({"eot": 0}, "eot must be a whole number of at least 1, not 0"),
    ):
        with pytest.raises(UserError) as error:
            behind(**own)
        assert said in str(error.value)
        assert str(error.value).startswith("defense 'gan_inversion': ")
        assert "\n" not in str(error.value)
