"""Times of a chunk: the model's calls, the decoder's work, and when a budget is spent."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from qvg_cli.models.decoder import Decoder, Pixels
from qvg_cli.planning.chunks import ChunkPlan


class OutOfBudget(Exception):
    """The time that an arm may take is over."""


@dataclass
class Clock:
    """Measures one arm; a model's calls are timed by events, without waiting for them.

    Attributes:
        budget_seconds: From the clock's making; none is without end.
    """

    device: torch.device
    budget_seconds: float | None
    _began: float = field(default_factory=time.perf_counter)
    _chunk_began: float = 0.0
    _seconds: dict[str, float] = field(default_factory=dict)
    _marks: list[list[Any]] = field(default_factory=list)

    def begin_chunk(self) -> None:
        """Start a chunk."""
        self._wait()
        self._chunk_began = time.perf_counter()
        self._seconds = {"decode": 0.0, "recall": 0.0}
        self._marks = [[self._mark()]]

    def step(self) -> None:
        """Note that a model call has been given to the device.

        Raises:
            OutOfBudget: The time is over.
        """
        self._marks[-1].append(self._mark())
        self.check_budget()

    def check_budget(self) -> None:
        """Raise `OutOfBudget` if the time is over."""
        if self.budget_seconds is not None and time.perf_counter() - self._began > self.budget_seconds:
            raise OutOfBudget

    def begin_decoder(self) -> float:
        """The time, once all that was given to the device before is done."""
        self._wait()
        return time.perf_counter()

    def end_decoder(self, kind: str, began: float) -> None:
        """Add the time since `began` to the decoder's work of a `kind`; calls are timed anew from here."""
        self._wait()
        now = time.perf_counter()
        self._seconds[kind] += now - began
        self._marks.append([self._mark()])

    def figures(self) -> dict[str, Any]:
        """Seconds of the chunk; the transformer's hold all that is not the decoder's."""
        self._wait()
        transformer = time.perf_counter() - self._chunk_began - sum(self._seconds.values())
        calls = [self._between(first, second) for marks in self._marks for first, second in pairwise(marks)]
        return {
            "transformer_seconds": round(transformer, 4),
            "decode_seconds": round(self._seconds["decode"], 4),
            "recall_seconds": round(self._seconds["recall"], 4),
            "call_seconds": [round(seconds, 4) for seconds in calls],
        }

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first: Any, second: Any) -> float:
        return first.elapsed_time(second) / 1000 if self.device.type == "cuda" else second - first

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class TimedDecoder:
    """A decoder whose work is told to a clock."""

    def __init__(self, decoder: Decoder, clock: Clock) -> None:
        self._decoder = decoder
        self._clock = clock

    def recall(self, latents: Tensor) -> Tensor:
        """See `Decoder.recall`."""
        began = self._clock.begin_decoder()
        recalled = self._decoder.recall(latents)
        self._clock.end_decoder("recall", began)
        return recalled

    def decode_each(self, latents: Tensor) -> Iterator[Pixels]:
        """See `Decoder.decode_each`; the parts come when all of them are there."""
        began = self._clock.begin_decoder()
        parts = [Pixels(part.wait()) for part in self._decoder.decode_each(latents)]
        self._clock.end_decoder("decode", began)
        yield from parts

    def skip(self, chunks: Sequence[ChunkPlan], latents: Tensor, num_shown: int) -> None:
        """See `Decoder.skip`; the next chunk begins when what was there before it is there again."""
        self._decoder.skip(chunks, latents, num_shown)
        self._clock.begin_chunk()


class NoDecoder:
    """Makes no pixels, and recalls latents as they were made."""

    def skip(self, chunks: Sequence[ChunkPlan], latents: Tensor, num_shown: int) -> None:
        """Nothing to come to."""

    def recall(self, latents: Tensor) -> Tensor:
        """See `Decoder.recall`."""
        return latents

    def decode_each(self, latents: Tensor) -> Iterator[Pixels]:
        """No frames."""
        yield Pixels(torch.empty(latents.shape[0], 0, 1, 1, 3, dtype=torch.uint8))
