"""Where a clip and what was made after it meet: the VAE's tones fade in, so that the eye sees no cut.

The model goes on from the clip as the VAE renders it, whose tones are a little different. The last frame is
known both ways; the smooth part of the difference is added to the new frames, less with each of them. Edges
are left out: they would stay where the picture no longer is.
"""

import torch
from torch import Tensor
from torch.nn import functional

FADE_FRAMES = 8
"""Half a second at 16 frames a second."""
_CELL = 16
"""Pixels to a side over which the difference is averaged."""


class Seam:
    """The fade after one clip.

    Args:
        shown: `[B, 3, height, width]` the clip's last frame, in -1 .. 1.
        rendered: The same frame as the VAE renders it.
    """

    def __init__(self, shown: Tensor, rendered: Tensor) -> None:
        difference = shown.to(rendered.device).float() - rendered.float()
        height, width = difference.shape[-2:]
        smooth = functional.adaptive_avg_pool2d(difference, (-(-height // _CELL), -(-width // _CELL)))
        self._difference = functional.interpolate(smooth, (height, width), mode="bilinear")[:, :, None]
        self._num_done = 0

    def skip(self, num_frames: int) -> None:
        self._num_done += num_frames

    def fade(self, frames: Tensor) -> Tensor:
        """The next `[B, 3, n, height, width]` frames after the clip, in -1 .. 1."""
        place = torch.arange(1, frames.shape[2] + 1, device=frames.device) + self._num_done
        self._num_done += frames.shape[2]
        if self._num_done - frames.shape[2] >= FADE_FRAMES:
            return frames
        share = (1 - place / (FADE_FRAMES + 1)).clamp(min=0).view(1, 1, -1, 1, 1)
        return (frames.float() + share * self._difference).clamp(-1, 1).to(frames.dtype)
