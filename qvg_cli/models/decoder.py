"""From the latents of a chunk to pixels: what a decoder offers, and how chunks are decoded again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from qvg_cli.errors import QvgError
from qvg_cli.planning.chunks import ChunkPlan


class Pixels:
    """Some frames of a video, which a GPU may still be computing.

    Args:
        frames: `[B, n, height, width, 3]` uint8 on the CPU, whole once `done` has happened.
        is_nan: Whether a value was none, as soon as `frames` are whole.
        began: When a stream of the decoder's own began with them; `None` for the stream of the model.
        done: `None` if they are there.

    Attributes:
        is_there: Whether nobody has to wait for them.
        is_beside: Whether they are computed beside the model.
    """

    def __init__(
        self,
        frames: Tensor,
        is_nan: Tensor | None = None,
        began: torch.cuda.Event | None = None,
        done: torch.cuda.Event | None = None,
    ) -> None:
        self.num_frames = frames.shape[1]
        self.is_there = done is None
        self.is_beside = began is not None
        self._frames, self._is_nan, self._began, self._done = frames, is_nan, began, done

    def wait(self) -> Tensor:
        """`[B, n, height, width, 3]` uint8 on the CPU; `QvgError` if a value is NaN."""
        if not self.is_there and self._done is not None:
            self._done.synchronize()
            # Out of pinned memory, of which there is less.
            self._frames = self._frames.clone()
            self.is_there = True
        if self._is_nan is not None and self._is_nan.item():
            raise QvgError(
                "the decoded frames contain NaN",
                hint="the weights may be damaged, or need --set model.dtype=float32; see qvg download",
            )
        return self._frames

    @property
    def seconds(self) -> float:
        """How long the decoder's own stream took, once they are there."""
        if self._began is None or self._done is None:
            return 0.0
        return self._began.elapsed_time(self._done) / 1000

    def seconds_after(self, event: torch.cuda.Event) -> float:
        """How long after `event` they came, once they are there; 0 if it came later."""
        return 0.0 if self._done is None else max(0.0, event.elapsed_time(self._done) / 1000)


class Decoder(Protocol):
    """From latents to pixels, and to the latents that the model is shown again."""

    def recall(self, latents: Tensor) -> Tensor:
        """What a prefill reads of frames that were made, or given, as `latents`; `[B, C, F, h, w]` both."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of the next latent frames, if any.

        Args:
            latents: `[B, C, F, h, w]`, normalised as the transformer makes them.

        Returns:
            `[B, n, height, width, 3]` uint8 on the CPU, `n = 4 F`, or `4 F - 3` at the video's beginning;
            values are rounded to nearest.
        """
        return torch.cat([part.wait() for part in self.decode_each(latents)], dim=1)

    def decode_each(self, latents: Tensor) -> Iterator[Pixels]:
        """The pixels of `decode` in parts; a GPU may compute them until somebody waits for them."""

    def follow(self, frames: Tensor, latents: Tensor) -> None:
        """Go on after a clip, as if its end had been decoded here.

        Args:
            frames: `[B, 3, 4 F - 3, height, width]` pixels in -1 .. 1, encoded to `[B, C, F, h, w]` latents.
        """

    def skip(self, chunks: Sequence[ChunkPlan], latents: Tensor, num_shown: int) -> None:
        """Come to where the first chunks of a video would have led, of which `num_shown` were followed."""


class WrappedDecoder(Decoder):
    """Another decoder, with something around each of its calls."""

    def __init__(self, decoder: Decoder, around: Callable[[], AbstractContextManager[object]]) -> None:
        self._decoder = decoder
        self._around = around

    def recall(self, latents: Tensor) -> Tensor:
        with self._around():
            return self._decoder.recall(latents)

    def decode_each(self, latents: Tensor) -> Iterator[Pixels]:
        # Once around all parts.
        with self._around():
            yield from self._decoder.decode_each(latents)

    def follow(self, frames: Tensor, latents: Tensor) -> None:
        with self._around():
            self._decoder.follow(frames, latents)

    def skip(self, chunks: Sequence[ChunkPlan], latents: Tensor, num_shown: int) -> None:
        with self._around():
            self._decoder.skip(chunks, latents, num_shown)


def redecode(
    decoder: Decoder, chunks: Sequence[ChunkPlan], latents: Tensor, *, num_shown: int = 0
) -> Iterator[Tensor]:
    """Pixels `[B, n, height, width, 3]` of every chunk of a finished rollout, bit for bit.

    Args:
        decoder: Where the rollout's was in the beginning, and where it was after the last chunk in the end.
        latents: `[B, C, F, h, w]` of all frames of the chunks, of which the first `num_shown` were followed.
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
