"""The loop that makes a video: for each chunk prefill, denoise, commit, decode, emit. It knows no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qvg_cli.models.base import Decoder, Session
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
from qvg_cli.planning.ledger import MemoryRecorder, MemorySample
from qvg_cli.randomness import noise_generator


@dataclass(frozen=True)
class ChunkResult:
    """What one chunk added to the video.

    Attributes:
        chunk: The plan of the chunk.
        latents: `[B, C, F, h, w]` of the frames the chunk added, made or given.
        frames: `[B, n, height, width, 3]` uint8 pixels of those that were not shown before, on the CPU.
        memory: The cache around this chunk.
        seconds: Time from the chunk's begin to its pixels.
        phases: The same by phase: "prefill", "denoise", "commit", "decode".
    """

    chunk: ChunkPlan
    latents: Tensor
    frames: Tensor
    memory: MemorySample
    seconds: float
    phases: Mapping[str, float]


@dataclass(frozen=True)
class Done:
    """What an earlier process has made of the same video.

    Attributes:
        num_chunks: The first ones of the plan.
        latents: `[B, C, F, h, w]` of their frames, on the model's device.
        has_history: Whether the session's cache holds their keys and values; else they are computed again.
    """

    num_chunks: int
    latents: Tensor
    has_history: bool = True


def rollout(
    plan: VideoPlan,
    session: Session,
    decoder: Decoder,
    noise: Callable[[ChunkPlan], Callable[[], Tensor]],
    *,
    context: Tensor | None = None,
    num_shown: int = 0,
    done: Done | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[ChunkResult]:
    """Make the video chunk by chunk; each result is whole when it is yielded.

    Args:
        noise: For a chunk, a function that draws `[B, C, F, h, w]` anew at every call; see `SeededNoise`.
        context: `[B, C, F, h, w]` given latents of the first frames.
        num_shown: Of them, the first so many have been seen by the decoder and are not decoded again.
        done: Chunks to leave out.
        on_step: Called after every model call.
    """
    recorder = MemoryRecorder(session.cache, session.device)
    known = [] if context is None else list(context.split(1, dim=2))
    num_emitted = 0
    if done is not None:
        num_emitted = done.latents.shape[2]
        known[:num_emitted] = done.latents.split(1, dim=2)
        if not done.has_history:
            _fill_cache(plan, session, done)
        decoder.skip(plan, done.num_chunks, done.latents, num_shown)
    for chunk in plan.chunks[0 if done is None else done.num_chunks :]:
        watch = _Stopwatch(session.device)
        session.cache.begin(chunk)
        recorder.begin()
        if chunk.prefill:
            given = decoder.recall(torch.cat([known[frame] for frame in chunk.prefill], dim=2))
            if chunk.commits or chunk.makes:
                session.clean_pass(chunk, chunk.prefill, given)
                on_step()
            watch.lap("prefill")
        if chunk.makes:
            made = session.denoise(chunk, noise(chunk), on_step)
            watch.lap("denoise")
            known.extend(made.split(1, dim=2))
            if chunk.commits == chunk.makes:
                session.clean_pass(chunk, chunk.makes, made)
                on_step()
                watch.lap("commit")
        end = max(chunk.frames) + 1
        latents = torch.cat(known[num_emitted:end], dim=2)
        frames = _decode_new(decoder, plan, latents, num_shown - num_emitted)
        num_emitted = end
        watch.lap("decode")
        memory = recorder.sample(chunk, end)
        yield ChunkResult(chunk, latents, frames, memory, watch.seconds, watch.laps)


class _Stopwatch:
    """Times of a chunk's phases; a GPU has ended a phase when it counts as ended."""

    def __init__(self, device: torch.device) -> None:
        self.laps: dict[str, float] = {}
        self._device = device
        self._started = self._last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """From the beginning to the last lap."""
        return self._last - self._started

    def lap(self, name: str) -> None:
        """Count the time since the last lap as that of a phase."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def _fill_cache(plan: VideoPlan, session: Session, done: Done) -> None:
    """Compute the history of finished chunks as their rollout did: by clean passes, in the same order."""
    for chunk in plan.chunks[: done.num_chunks]:
        session.cache.begin(chunk)
        for frames in (chunk.prefill, chunk.makes):
            if frames and chunk.commits and (frames is chunk.prefill or chunk.commits == frames):
                session.clean_pass(chunk, frames, done.latents[:, :, list(frames)])


def redecode(
    decoder: Decoder,
    plan: VideoPlan,
    latents: Tensor,
    *,
    num_chunks: int | None = None,
    num_shown: int = 0,
) -> Iterator[Tensor]:
    """Pixels `[B, n, height, width, 3]` of every chunk of a finished rollout, bit for bit.

    Args:
        decoder: Where the rollout's was in the beginning, and where it was after the last chunk in the end.
        latents: `[B, C, F, h, w]` of all frames of the chunks.
        num_chunks: The first so many; none for all.
        num_shown: See `rollout`.
    """
    start = 0
    for chunk in plan.chunks[:num_chunks]:
        if chunk.prefill:
            # A decoder may take what it recalls as the beginning of what comes next.
            decoder.recall(latents[:, :, list(chunk.prefill)])
        stop = max(chunk.frames) + 1
        yield _decode_new(decoder, plan, latents[:, :, start:stop], num_shown - start)
        start = stop


def _decode_new(decoder: Decoder, plan: VideoPlan, latents: Tensor, num_shown: int) -> Tensor:
    """Pixels of the next latent frames, but for the first `num_shown`, if any, which the decoder has seen."""
    new = latents[:, :, max(0, num_shown) :]
    if not new.shape[2]:
        return torch.empty(len(latents), 0, plan.height, plan.width, 3, dtype=torch.uint8)
    return decoder.decode(new)


class SeededNoise:
    """Noise of a run: chunk `i` draws from its own generator, so it does not depend on the video's length.

    Args:
        batch: Videos made side by side.
    """

    def __init__(self, plan: VideoPlan, seed: int, *, batch: int = 1, like: Tensor) -> None:
        self._plan = plan
        self._seed = seed
        self._batch = batch
        self._like = like

    def __call__(self, chunk: ChunkPlan) -> Callable[[], Tensor]:
        """A function that draws the chunk's noise anew at every call, `[B, C, F, h, w]`, drawn on the CPU."""
        channels, height, width = self._plan.latent_shape
        shape = (self._batch, channels, len(chunk.makes), height, width)
        generator = noise_generator(self._seed, chunk.index)
        return lambda: torch.randn(shape, generator=generator).to(self._like)
