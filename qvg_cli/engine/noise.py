"""The noise of a run, one generator a chunk, so that it does not depend on the video's length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qvg_cli.planning.chunks import ChunkPlan, Geometry
from qvg_cli.randomness import noise_generator


class SeededNoise:
    """Draws the noise of each chunk from (seed, index of the chunk), on the CPU.

    Args:
        batch: Videos made side by side.
    """

    def __init__(
        self, geometry: Geometry, seed: int, dtype: torch.dtype, device: torch.device, *, batch: int = 1
    ) -> None:
        self._geometry = geometry
        self._seed = seed
        self._dtype = dtype
        self._device = device
        self._batch = batch

    def __call__(self, chunk: ChunkPlan) -> Callable[[], Tensor]:
        """A function that draws the chunk's noise `[B, C, F, h, w]` anew at every call."""
        channels, height, width = self._geometry.latent_shape
        shape = (self._batch, channels, len(chunk.makes), height, width)
        generator = noise_generator(self._seed, chunk.index)
        return lambda: torch.randn(shape, generator=generator).to(self._device, self._dtype)
