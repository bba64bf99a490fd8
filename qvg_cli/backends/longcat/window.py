"""Decoding and re-encoding of windows: a segment goes on from the frames that were shown.

The first latent frame of a window stands for one pixel frame and the others for four, so the newest latents
of a longer video do not make a window; the newest pixels do. They are kept as decoded, never rounded.

Source: meituan-longcat/LongCat-Video, `generate_vc` in `longcat_video/pipeline_longcat_video.py`. There the
condition frames are decoded anew with every segment, and rounded; here each frame is decoded once.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from qvg_cli.plan import pixel_frames
from qvg_cli.randomness import derive_seed
from qvg_cli.video.vae_stream import StreamingDecoder, to_pixels


class WindowDecoder:
    """See `qvg_cli.backends.base.Decoder`; decodes one video, a window at a time.

    Args:
        vae: Not changed; several decoders may share it.
        condition_frames: Latent frames that a segment goes on from.
    """

    def __init__(self, vae: AutoencoderKLWan, condition_frames: int) -> None:
        self._vae = vae
        self._num_kept = pixel_frames(condition_frames)
        self._shown: Tensor | None = None
        self._condition: Tensor | None = None
        self._num_recalled = 0

    @torch.no_grad()
    def recall(self, latents: Tensor) -> Tensor:
        """Latents of the newest frames as the first of a window, encoded from their pixels.

        Latents that were given are a window's first already, and come back as they are.
        """
        if self._shown is None:
            return latents
        seed = derive_seed(0, "posterior", self._num_recalled)
        self._num_recalled += 1
        frames = self._shown.to(self._vae.device)
        self._condition = encode(self._vae, frames, torch.Generator().manual_seed(seed))
        return self._condition

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode the frames of a window that are new; rounded to nearest."""
        decoder = StreamingDecoder(self._vae)
        if self._condition is not None:
            # Decoded for the decoder's memory alone.
            decoder.decode_float(self._condition)
            self._condition = None
        frames = decoder.decode_float(latents)
        shown = frames.cpu() if self._shown is None else torch.cat([self._shown, frames.cpu()], dim=2)
        self._shown = shown[:, :, -self._num_kept :]
        return to_pixels(frames)


def encode(vae: AutoencoderKLWan, frames: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised latents of pixel frames, a draw from the encoder's posterior.

    Args:
        frames: `[B, 3, 4 F - 3, height, width]` in -1 .. 1.
        generator: On the CPU, so that the draw is the same on every device.

    Returns:
        `[B, C, F, h, w]` float32.
    """
    latents = vae.encode(frames.to(vae.dtype)).latent_dist.sample(generator).float()
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=latents.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=latents.device).view(shape)
    normalised: Tensor = (latents - mean) / std
    return normalised
