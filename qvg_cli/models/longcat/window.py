"""Decoding and re-encoding of windows: a segment goes on from the frames that were shown.

The first latent frame of a window stands for one pixel frame and the others for four, so the newest latents
of a longer video do not make a window; the newest pixels do. They are kept as decoded, never rounded.

Source: meituan-longcat/LongCat-Video, `generate_vc` in `longcat_video/pipeline_longcat_video.py`. There the
condition frames are decoded anew with every segment, and rounded; here each frame is decoded once.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from qvg_cli.models.decoder import Decoder, Pixels, redecode
from qvg_cli.models.seam import Seam
from qvg_cli.models.vae import FrameDecoder, StreamingDecoder, encode_frames, no_pixels, send_pixels
from qvg_cli.planning.chunks import ChunkPlan, pixel_frames
from qvg_cli.randomness import derive_seed


class WindowDecoder(Decoder):
    """Decodes one video, a window at a time; several decoders may share the VAE.

    Args:
        open_decoder: What decodes a window instead of `vae`.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        condition_frames: int,
        open_decoder: Callable[[], FrameDecoder] | None = None,
    ) -> None:
        self._vae = vae
        self._open_decoder = open_decoder or partial(StreamingDecoder, vae)
        self._num_kept = pixel_frames(condition_frames)
        self._shown: Tensor | None = None
        self._condition: Tensor | None = None
        self._encoded: Tensor | None = None
        self._seam: Seam | None = None
        self._is_after_clip = False
        self._num_recalled = 0

    @torch.no_grad()
    def recall(self, latents: Tensor) -> Tensor:
        """Latents of the newest frames as the first of a window, encoded from their pixels.

        Latents that were given are a window's first already, and come back as they are.
        """
        if self._shown is None:
            return latents
        if self._encoded is not None:
            self._condition, self._encoded = self._encoded, None
            return self._condition
        seed = derive_seed(0, "posterior", self._num_recalled)
        self._num_recalled += 1
        self._condition = encode_frames(self._vae, self._shown, torch.Generator().manual_seed(seed))
        return self._condition

    def follow(self, frames: Tensor, latents: Tensor) -> None:
        self._shown = frames.cpu()
        self._encoded = latents
        self._is_after_clip = True

    def skip(self, chunks: Sequence[ChunkPlan], latents: Tensor, num_shown: int) -> None:
        # Every window goes on from the pixels of the one before, so all are decoded.
        for _ in redecode(self, chunks, latents, num_shown=num_shown):
            pass

    @torch.no_grad()
    def decode_each(self, latents: Tensor) -> Iterator[Pixels]:
        """The frames of a window that are new, in one part: a window is decoded as a whole."""
        if not latents.shape[2]:
            yield Pixels(no_pixels(latents, self._vae.config.scale_factor_spatial))
            return
        decoder = self._open_decoder()
        if self._condition is not None:
            # Decoded for the decoder's memory alone.
            rendered = decoder.decode_float(self._condition)
            self._condition = None
            if self._is_after_clip:
                assert self._shown is not None
                self._seam = Seam(self._shown[:, :, -1], rendered[:, :, -1])
                self._is_after_clip = False
        frames = decoder.decode_float(latents)
        if self._seam is not None:
            frames = self._seam.fade(frames)
        shown = frames.cpu() if self._shown is None else torch.cat([self._shown, frames.cpu()], dim=2)
        self._shown = shown[:, :, -self._num_kept :]
        yield Pixels(send_pixels(frames).wait())
