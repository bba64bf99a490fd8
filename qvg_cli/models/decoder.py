"""From the latents of a chunk to pixels: what a decoder offers, and how chunks are decoded again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from qvg_cli.planning.chunks import ChunkPlan


class Decoder(Protocol):
    """From latents to pixels, and to the latents that the model is shown again."""

    def recall(self, latents: Tensor) -> Tensor:
        """What a prefill reads of frames that were made, or given, as `latents`; `[B, C, F, h, w]` both."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels `[B, n, height, width, 3]` uint8, on the CPU, of the next latent frames."""
        ...

    def decode_each(self, latents: Tensor) -> Iterator[Tensor]:
        """The pixels of `decode` in parts, each as soon as it is there."""
        ...

    def follow(self, frames: Tensor, latents: Tensor) -> None:
        """Go on after a clip, as if its end had been decoded here.

        Args:
            frames: `[B, 3, 4 F - 3, height, width]` pixels in -1 .. 1.
            latents: `[B, C, F, h, w]` that they were encoded to.
        """
        ...

    def skip(self, chunks: Sequence[ChunkPlan], latents: Tensor, num_shown: int) -> None:
        """Come to where the first chunks of a video would have led.

        Args:
            latents: `[B, C, F, h, w]` of their frames.
            num_shown: Of them, the first so many were followed.
        """
        ...


def redecode(
    decoder: Decoder, chunks: Sequence[ChunkPlan], latents: Tensor, *, num_shown: int = 0
) -> Iterator[Tensor]:
    """Pixels `[B, n, height, width, 3]` of every chunk of a finished rollout, bit for bit.

    Args:
        decoder: Where the rollout's was in the beginning, and where it was after the last chunk in the end.
        chunks: The first chunks of the video.
        latents: `[B, C, F, h, w]` of all frames of the chunks.
        num_shown: Of them, the first so many have been seen by the decoder and are not decoded again.
    """
    start = 0
    for chunk in chunks:
        if chunk.prefill:
            # A decoder may take what it recalls as the beginning of what comes next.
            decoder.recall(latents[:, :, list(chunk.prefill)])
        stop = max(start, max(chunk.frames) + 1)
        # Those that are new to the decoder.
        yield decoder.decode(latents[:, :, max(start, num_shown) : stop])
        start = stop
