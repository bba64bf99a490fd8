"""Pixel frames to the latents that a transformer works on."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor


@torch.no_grad()
def encode_frames(vae: AutoencoderKLWan, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Normalised latents of pixel frames.

    Args:
        frames: `[B, 3, 4 F - 3, height, width]` in -1 .. 1.
        generator: On the CPU, so that the draw from the encoder's posterior is the same on every device; none
            takes the posterior's mean.

    Returns:
        `[B, C, F, h, w]` float32.
    """
    posterior = vae.encode(frames.to(vae.device, vae.dtype)).latent_dist
    latents = (posterior.mean if generator is None else posterior.sample(generator)).float()
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=latents.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=latents.device).view(shape)
    normalised: Tensor = (latents - mean) / std
    return normalised
