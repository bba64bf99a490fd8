"""Decoding latents as they come, with the same bits as decoding the whole video at once.

The decoder is causal: it needs the last features of every temporal convolution and nothing else of the past.
Calling `vae.decode` chunk by chunk would forget them at every call, and show a cut at each chunk.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor

from qvg_cli.video.joint import Joint


class StreamingDecoder:
    """Decodes one video, a few latent frames at a time.

    Args:
        vae: Not changed; several decoders may share it.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self._vae = vae
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean, device=vae.device).view(shape)
        self._std = torch.tensor(vae.config.latents_std, device=vae.device).view(shape)
        num_convolutions = sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
        self._features: list[Tensor | str | None] = [None] * num_convolutions
        self._is_first = True
        self._joint: Joint | None = None

    def recall(self, latents: Tensor) -> Tensor:
        """Finished latents as the model reads them again: as it made them."""
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next latent frames.

        Args:
            latents: `[B, C, F, h, w]`, normalised as the transformer makes them.

        Returns:
            `[B, n, height, width, 3]` uint8 on the CPU, `n = 4 F`, or `4 F - 3` at the video's beginning;
            values are rounded to nearest.
        """
        frames = self.decode_float(latents)
        return to_pixels(frames if self._joint is None else self._joint.fade(frames))

    def follow(self, frames: Tensor, latents: Tensor) -> None:
        """See `qvg_cli.backends.base.Decoder.follow`."""
        self._joint = Joint(frames[:, :, -1], self.decode_float(latents)[:, :, -1])

    @torch.no_grad()
    def decode_float(self, latents: Tensor) -> Tensor:
        """As `decode`, but `[B, 3, n, height, width]` in -1 .. 1 and the VAE's dtype."""
        latents = (latents.to(self._mean) * self._std + self._mean).to(self._vae.dtype)
        latents = self._vae.post_quant_conv(latents)
        decoded = []
        for frame in latents.split(1, dim=2):
            decoded.append(
                self._vae.decoder(frame, feat_cache=self._features, feat_idx=[0], first_chunk=self._is_first)
            )
            self._is_first = False
        pixels = torch.cat(decoded, dim=2)
        if self._vae.config.patch_size is not None:
            pixels = unpatchify(pixels, patch_size=self._vae.config.patch_size)
        return pixels.clamp(-1.0, 1.0)


def to_pixels(frames: Tensor) -> Tensor:
    """`[B, 3, n, height, width]` in -1 .. 1 to `[B, n, height, width, 3]` uint8 on the CPU, rounded to
    nearest."""
    levels = ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).contiguous().cpu()
