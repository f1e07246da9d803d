"""Drawing images from a denoiser."""

from typing import Final

import torch
from torch import Tensor

from protection.denoisers import Denoiser
from protection.preservation import evaluating
from protection.seeds import generator

_BLOCK_SIZE: Final = 256


def sample(model: Denoiser, *, num_images: int, num_steps: int, seed: int) -> Tensor:
    """``(N, C, H, W)`` uint8 images drawn from ``model`` by DDIM, in ``num_steps`` steps.

    The same seed begins with the same noise for every model, so their images compare one by one.

    Source: Song, Meng, Ermon, Denoising Diffusion Implicit Models, 2021, with eta 0.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(num_steps)
    size, rng = model.blueprint.image_size, generator(seed, "samples")
    noise = torch.randn(num_images, model.num_channels, size, size, generator=rng)
    drawn = []
    with evaluating(model):
        for start in torch.split(noise, _BLOCK_SIZE):
            images = start.to(model.device)
            for timestep in scheduler.timesteps:
                timesteps = timestep.expand(len(images)).to(model.device)
                predicted = model(images, timesteps)
                images = scheduler.step(predicted, timestep, images).prev_sample
            drawn.append(_to_pixels(images))
    return torch.cat(drawn)


def _to_pixels(images: Tensor) -> Tensor:
    """``images`` in [-1, 1], or beyond, as uint8 on the CPU."""
    levels = ((images + 1) * 127.5).round().clamp(0, 255)
    # A ruined denoiser may draw what is no number.
    return levels.nan_to_num(0).to(torch.uint8).cpu()
