"""A small diffusion model: images drown in noise step by step, and it learns to tell the noise, to take it out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from segaudit.models.purifiers import Purifier
from segaudit.nn.straight import through
from segaudit.rng import streams_of
from segaudit.types import UserError

SHARE, STEPS = 0.1, 10
"""How far `forward` noises, and in how many steps it leads back."""
GROUPS = 8
"""Of the group norms, and the channels of an attention head."""
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
"""How the noise grows, and what diffusers calls it."""
MOST = 0.999
"""The largest share of the variance that one level makes new."""


class Diffusion(Purifier):
    """A diffusion model: a U-Net that tells the noise in an image at each level of a noising process.

    Images N x C x H x W in [0, 1] -> images of the same shape in [0, 1], noised to a tenth of the process and led back
    in ten steps of DDPM, with numbers from `segaudit.rng`; any H and W. Within the process they are in [-1, 1], and its
    levels go from 0, the image itself, to `timesteps`, all noise. channels: C. width: channels of the first size, a
    multiple of 8; the others have twice as many. depth: residual blocks at each size. levels: sizes, each half of the
    one before, the last with attention. patch: side of the squares of pixels that are folded into channels before the
    first. schedule: how the noise grows, `linear` or `cosine`; so a share of the process is as much noise with any
    number of levels. ema: outside of training each weight is the running mean of what it was, with at most this decay,
    which is kept in a buffer; 0: as it is.
    Needs the extra `diffusion`. Raises UserError for other arguments, for images of other channels, and without it.
    Source: Ho et al. 2020 (DDPM); cosine: Nichol & Dhariwal 2021; patches: Luhman & Luhman 2022.
    """

    random = True
    alphas: Tensor
    reached: Tensor
    """The highest level that it was trained on; 0 before."""

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 32,
        depth: int = 1,
        levels: int = 2,
        patch: int = 2,
        timesteps: int = 1000,
        schedule: str = "linear",
        ema: float = 0.999,
    ) -> None:
        own: dict[str, Any] = {"width": width, "depth": depth, "levels": levels, "patch": patch}
        super().__init__(channels=channels, **own, timesteps=timesteps, schedule=schedule, ema=ema)
        for key, high in (("width", 1024), ("depth", 8), ("levels", 6), ("patch", 16)):
            self.whole(key, own[key], high=high)
        if width % GROUPS:
            raise UserError(f"purifier 'diffusion': width must be a multiple of {GROUPS}, not {width}")
        self.patch, self.stride = patch, patch * 2 ** (levels - 1)
        self.timesteps = self.whole("timesteps", timesteps, high=10_000)
        self.ema = self.real("ema", ema, high=0.999999)
        diffusers = _diffusers()
        named = SCHEDULES[self.choice("schedule", schedule, list(SCHEDULES))]
        ends = {"beta_start": 0.1 / timesteps, "beta_end": min(20 / timesteps, MOST)}  # those of the paper at 1000
        betas = diffusers.DDPMScheduler(num_train_timesteps=timesteps, beta_schedule=named, **ends).betas.double()
        kept = torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)])
        self.register_buffer("alphas", kept.float(), persistent=False)
        self.unet: nn.Module = diffusers.UNet2DModel(
            in_channels=channels * patch**2,
            out_channels=channels * patch**2,
            block_out_channels=(width, *[2 * width] * (levels - 1)),
            down_block_types=(*["DownBlock2D"] * (levels - 1), "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * (levels - 1)),
            layers_per_block=depth,
            norm_num_groups=GROUPS,
            attention_head_dim=GROUPS,
        )
        self.register_buffer("reached", torch.zeros((), dtype=torch.int64))
        self.mean = nn.Module()  # its names: a buffer's may hold no dot
        self.mean.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for name, weight in self.unet.named_parameters() if ema else ():
            self.mean.register_buffer(name.replace(".", "/"), weight.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        """Purified images N x C x H x W."""
        streams = streams_of(images)
        path = self.path(SHARE, min(STEPS, self.level(SHARE)))
        if self.training:
            self.track(path[0])  # any recipe may train it
        x = self.noised(images, path[0], streams.normal(images.detach()))
        for level, to in pairwise(path):
            x = self.back(x, level, to, streams.normal(x.detach()) if to else None)
        return self.image(x)

    def level(self, share: float) -> int:
        """The level that is this share of the process, at least 1."""
        return max(1, round(share * self.timesteps))

    def path(self, share: float, steps: int) -> list[int]:
        """The levels of a way back: from `level(share)` to 0 in so many steps, at most that, evenly.

        Raises UserError outside of training where that is further into the process than it was trained.
        """
        top = self.level(share)
        if not self.training and 0 < self.reached < top:
            raise UserError(
                f"purifier 'diffusion': it was trained on the first {int(self.reached) / self.timesteps:g} of the "
                f"process, and share is {share:g}; lower it, or train with a larger `share`"
            )
        return [(2 * top * i + steps) // (2 * steps) for i in range(steps, -1, -1)]

    def noised(self, images: Tensor, level: Tensor | int, noise: Tensor) -> Tensor:
        """x at a level (of all images, or N int64, one each) of images in [0, 1] and standard normal noise."""
        self.fits(images)
        kept = self._kept(level)
        return kept.sqrt() * (2 * images - 1) + (1 - kept).sqrt() * noise

    def noise(self, x: Tensor, level: Tensor | int) -> Tensor:
        """The noise in x N x C x H x W at a level (of all, or one each), as the network tells it."""
        height, width = x.shape[2:]
        bottom, right = -height % self.stride, -width % self.stride
        padded = F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x
        times = torch.as_tensor(level, device=x.device).expand(len(x)) - 1
        own = F.pixel_unshuffle(padded, self.patch), times
        found: Tensor = functional_call(self.unet, self._weights(), own, {"return_dict": False})[0]
        return F.pixel_shuffle(found, self.patch)[:, :, :height, :width]

    def back(self, x: Tensor, level: int, to: int, drawn: Tensor | None, *, loose: bool = False) -> Tensor:
        """x at the lower level `to` of x at a level: after DDPM with normal numbers `drawn`, after DDIM without them.

        The image that is left without the noise is clipped to its range. loose: with the gradient as if it were not.
        Source: Ho et al. 2020, eq. 7; Song et al. 2021 (DDIM), eq. 12 and 16.
        """
        here, there = self._kept(level), self._kept(to)
        bare = (x - (1 - here).sqrt() * self.noise(x, level)) / here.sqrt()
        image = through(bare, bare.clamp(-1, 1)) if loose else bare.clamp(-1, 1)
        noise = (x - here.sqrt() * image) / (1 - here).sqrt()
        if drawn is None:
            return there.sqrt() * image + (1 - there).sqrt() * noise
        old, new = (1 - there) * (here / there / (1 - here)).sqrt(), (1 - there) * (1 - here / there) / (1 - here)
        return there.sqrt() * image + old * noise + new.sqrt() * drawn

    def image(self, x: Tensor) -> Tensor:
        """Images in [0, 1] of x at level 0."""
        return (x + 1) / 2

    @torch.no_grad()
    def track(self, level: int) -> None:
        """Take the weights as they are now into their running means; at first a mean forgets faster.

        level: the highest that they learn on.
        """
        self.reached.clamp_(min=level)
        if not self.ema:
            return
        count = int(self.mean.get_buffer("count").add_(1))
        for name, weight in self.unet.named_parameters():
            self.mean.get_buffer(name.replace(".", "/")).lerp_(weight, 1 - min(self.ema, (1 + count) / (10 + count)))

    def _kept(self, level: Tensor | int) -> Tensor:
        """The share of the image in the variance at a level, of all or N x 1 x 1 x 1."""
        found = self.alphas[level]
        return found.view(-1, 1, 1, 1) if found.ndim else found

    def _weights(self) -> dict[str, Tensor]:
        """What stands in for the network's own weights."""
        if self.training or not self.ema:
            return {}
        return {name: self.mean.get_buffer(name.replace(".", "/")) for name, _ in self.unet.named_parameters()}


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise UserError("purifier 'diffusion' needs diffusers: pip install 'segaudit[diffusion]'") from error
    return diffusers
