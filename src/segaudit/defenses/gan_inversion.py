"""The image that a generator makes nearest to what came, in its place: Defense-GAN."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segaudit.defenses._check import choice, real, whole
from segaudit.nn.latent import Objective, alike, descend, sampler
from segaudit.nn.straight import through
from segaudit.rng import streams_of
from segaudit.types import Segmenter, UserError

ANSWERS = ("model", "inversion")
"""Who says what is in an image: the model, of what the generator made; or the label with which it came nearest."""


def gan_inversion(
    model: Segmenter,
    *,
    generator: Any,
    siamese: Any = None,
    steps: int = 200,
    restarts: int = 10,
    rate: float = 0.1,
    prior: float = 0.0,
    halvings: int = 3,
    classify: str = "model",
    rows: int = 500,
    eot: int = 1,
) -> Segmenter:
    """GAN inversion: an image is replaced by the nearest one that a generator makes (Defense-GAN).

    generator: the path of its weights, as `segaudit train` left them with recipe `wgan_gp`; in Python, the network.
    From each of `restarts` starts, drawn anew in each pass, `steps` steps of Adam, the first of length `rate`, lead to
    the nearest image; one with labels does so with each of them. Nearest: of the least squared distance of pixels, or
    with `siamese` (the weights of such a network) in its embedding, and `prior` times the squared length of z, which
    keeps it where the generator was trained. halvings: how often the worse half of the starts is left behind on the
    way, the last time at half of the steps; 0: never, as published. classify: `model`, which sees the nearest image of
    all; or `inversion`, where the label that came nearest is the answer, and minus its distance the logit. rows:
    searches at once, which bounds the memory. eot: draws that an attack takes the mean gradient of.
    The gradient: through the search itself it would be masked, so it goes straight through to `model`, as if nothing
    was replaced (BPDA); that of `inversion` holds the images that were found, exact where the search has ended.
    Source: Samangouei et al. 2018 (Defense-GAN), with Adam for its momentum; label by inversion ours.
    """
    own = "gan_inversion"
    made = sampler(f"defense {own!r}", generator).eval().requires_grad_(False)
    if siamese is not None and not isinstance(siamese, nn.Module):
        raise UserError(f"defense {own!r}: siamese must be the path of a Siamese network's weights, not {siamese!r}")
    if choice(own, "classify", classify, ANSWERS) == "inversion" and made.classes != model.num_classes:
        kind = f"one of {made.classes}" if made.classes else "one without labels"
        raise UserError(
            f"defense {own!r}: classify inversion needs a generator with a label for each of the {model.num_classes} "
            f"classes, and this is {kind}; train purifier `cwgan`, or leave classify out"
        )
    embedding = nn.Flatten() if siamese is None else siamese.eval().requires_grad_(False)
    search = Search(
        made,
        embedding,
        whole(own, "steps", steps, 1),
        whole(own, "restarts", restarts, 1),
        real(own, "rate", rate, above=0),
        real(own, "prior", prior, least=0),
        whole(own, "halvings", halvings, 0),
        whole(own, "rows", rows, 1),
    )
    return Inverted(model, search, classify == "model", whole(own, "eot", eot, 1))


class Search(nn.Module):
    """Images -> those that a generator makes nearest to them. embedding: what images are compared in, N x F."""

    def __init__(
        self,
        generator: Any,
        embedding: nn.Module,
        steps: int,
        restarts: int,
        rate: float,
        prior: float,
        halvings: int,
        rows: int,
    ) -> None:
        super().__init__()
        self.generator, self.embedding = generator, embedding
        self.steps, self.restarts, self.rate, self.prior, self.halvings = steps, restarts, rate, prior, halvings
        self.rows = max(1, rows // restarts) * restarts  # the starts of a label stay together

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest image for each of K labels (1 without), N x K x C x H x W, and what the prior adds, N x K.

        Every label of an image is searched from the same starts, which are drawn from the image's own stream; all
        images, labels and starts together.
        """
        count, kinds, starts = len(images), max(1, self.generator.classes), self.restarts
        wanted = self.embedding(images).to(images.dtype)
        if wanted.ndim != 2:
            raise UserError(
                f"defense 'gan_inversion': siamese must give each image a row of numbers, and this one gives "
                f"{tuple(wanted.shape[1:])}; give weights that recipe `siamese` made"
            )
        drawn = streams_of(images).normal(images.new_empty(count, starts, self.generator.latent))
        z = drawn.repeat_interleave(kinds, 0).flatten(0, 1)  # an image's labels, and a label's starts, side by side
        own: dict[str, Any] = {"steps": self.steps, "rate": self.rate, "starts": starts, "halvings": self.halvings}
        each = torch.split(torch.arange(len(z), device=images.device), self.rows)
        found = [descend(self._apart(images, wanted, rows), z[rows], **own) for rows in each]
        z, off = (torch.cat(part) for part in zip(*found, strict=True))
        best = off.view(-1, starts).argmin(1) + starts * torch.arange(count * kinds, device=images.device)
        with torch.autocast(images.device.type, enabled=False):  # the search may be in bfloat16
            made = [self.generator.sample(z[rows], self._labels(rows)) for rows in torch.split(best, self.rows)]
        added = self.prior * z[best].square().sum(1)
        return torch.cat(made).view(count, kinds, *images.shape[1:]), added.view(count, kinds)

    def apart(self, images: Tensor, made: Tensor) -> Tensor:
        """The squared distance of N images to each of the K made for them, N x K, with a gradient in the images."""
        places = self.embedding(made.flatten(0, 1)).view(*made.shape[:2], -1)
        return (self.embedding(images)[:, None] - places).square().sum(2)  # type: ignore[no-any-return]

    def _apart(self, images: Tensor, wanted: Tensor, part: Tensor) -> Objective:
        """The squared distance of what z makes to what is wanted, for a part of the searches."""

        def objective(z: Tensor, rows: Tensor) -> Tensor:
            made = self.generator.sample(z, self._labels(part[rows]))
            alike("defense 'gan_inversion'", made, images)
            found = self.embedding(made).to(z.dtype)
            off: Tensor = (found - wanted[part[rows] // self._each]).square().sum(1)
            return off + self.prior * z.square().sum(1) if self.prior else off

        return objective

    def _labels(self, rows: Tensor) -> Tensor | None:
        kinds = self.generator.classes
        return rows // self.restarts % kinds if kinds else None

    @property
    def _each(self) -> int:
        """Searches an image."""
        return self.restarts * max(1, int(self.generator.classes))


class Inverted(Segmenter):
    """A model behind the inversion of a generator, whose starts are drawn from `segaudit.rng`.

    asks: whether the model is asked about what was found; else the label that came nearest is the answer.
    """

    random = True

    def __init__(self, model: Segmenter, search: Search, asks: bool, eot: int) -> None:
        super().__init__()
        self.model, self.search, self.asks, self.eot = model, search, asks, eot
        self.class_names = model.class_names

    @property
    def manifold(self) -> tuple[Any, Segmenter | None]:
        """The generator, and the model that is asked about its images, for an attack that knows of both."""
        return self.search.generator, self.model if self.asks else None

    def forward(self, images: Tensor) -> Tensor:
        """Logits N x K x H x W of the images that were found, or N x K x 1 x 1 of their distances."""
        made, off = self._found(images)
        if not self.asks:
            return -off[:, :, None, None]
        logits: Tensor = self.model(through(images, _nearest(made, off)))
        return logits

    def purified(self, images: Tensor) -> Tensor:
        """The nearest image of all, N x C x H x W, from the starts of one pass."""
        return _nearest(*self._found(images))

    def _found(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The image of each label, N x K x C x H x W, and how far it is with its prior, N x K."""
        made, added = self.search(images)
        with torch.autocast(images.device.type, enabled=False):
            return made, self.search.apart(images, made) + added


def _nearest(made: Tensor, off: Tensor) -> Tensor:
    return made[torch.arange(len(made), device=made.device), off.argmin(1)]
