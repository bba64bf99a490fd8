"""The loop that makes a video: for each chunk prefill, denoise, commit, decode, emit. It knows no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvg_cli.models.base import Denoiser
from qvg_cli.models.decoder import Decoder
from qvg_cli.planning.cache_plan import Commit
from qvg_cli.planning.chunks import ChunkPlan, Frames
from qvg_cli.planning.ledger import MemorySample


@dataclass(frozen=True)
class ChunkResult:
    """What one chunk added to the video.

    Attributes:
        chunk: The plan of the chunk.
        latents: `[B, C, F, h, w]` of the frames that the chunk added, made or given; F may be 0.
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
        chunks: The first ones of the plan.
        latents: `[B, C, F, h, w]` of their frames, on the model's device.
        has_history: Whether the cache holds their keys and values; else they are computed again.
    """

    chunks: Sequence[ChunkPlan]
    latents: Tensor
    has_history: bool = True


def rollout(
    chunks: Iterable[ChunkPlan],
    denoiser: Denoiser,
    decoder: Decoder,
    noise: Callable[[ChunkPlan], Callable[[], Tensor]],
    *,
    prompt_at: Callable[[int], Tensor] | None = None,
    context: Tensor | None = None,
    num_shown: int = 0,
    done: Done | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_frames: Callable[[Tensor], None] = lambda frames: None,
) -> Iterator[ChunkResult]:
    """Make a video chunk by chunk; each result is whole when it is yielded.

    Args:
        chunks: Those still to be made; one that is not known yet may come when it is asked for.
        noise: For a chunk, a function that draws `[B, C, F, h, w]` anew at every call, such as `SeededNoise`.
        prompt_at: The prompt embeddings of a chunk, by its index; `None` leaves the denoiser's.
        context: `[B, C, F, h, w]` given latents of the first frames.
        num_shown: Of them, the first so many have been seen by the decoder and are not decoded again.
        done: Chunks that were made before.
        on_step: Called after every model call.
        on_frames: Called with pixels `[B, n, height, width, 3]` uint8 as soon as they are decoded.
    """
    cache, device = denoiser.cache, denoiser.device
    known = [] if context is None else list(context.split(1, dim=2))
    num_emitted = 0
    if done is not None:
        num_emitted = done.latents.shape[2]
        known[:num_emitted] = done.latents.split(1, dim=2)
        if not done.has_history:
            _fill_cache(done, denoiser, noise, prompt_at)
        decoder.skip(done.chunks, done.latents, num_shown)
    for chunk in chunks:
        watch = _Stopwatch(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = cache.begin(chunk)
        if prompt_at is not None:
            denoiser.set_prompt(prompt_at(chunk.index))
        if chunk.prefill:
            given = decoder.recall(torch.cat([known[frame] for frame in chunk.prefill], dim=2))
            if step.prefill is not None:
                denoiser.update_cache(chunk, chunk.prefill, given, step.prefill)
                cache.settle(step.prefill)
                on_step()
            watch.lap("prefill")
        if chunk.makes:
            made = denoiser.denoise(chunk, noise(chunk), on_step)
            watch.lap("denoise")
            known.extend(made.split(1, dim=2))
            if step.commit is not None:
                denoiser.update_cache(chunk, chunk.makes, made, step.commit)
                cache.settle(step.commit)
                on_step()
                watch.lap("commit")
        end = max(num_emitted, max(chunk.frames) + 1)
        # A chunk that only changes the cache adds no frame.
        latents = torch.cat(known[num_emitted:end] or [known[0][:, :, :0]], dim=2)
        parts = []
        for part in decoder.decode_each(latents[:, :, max(0, num_shown - num_emitted) :]):
            on_frames(part)
            parts.append(part)
        frames = torch.cat(parts, dim=1)
        num_emitted = end
        watch.lap("decode")
        device_peak_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        memory = cache.sample(chunk, device_peak_bytes)
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


def _fill_cache(
    done: Done,
    denoiser: Denoiser,
    noise: Callable[[ChunkPlan], Callable[[], Tensor]],
    prompt_at: Callable[[int], Tensor] | None,
) -> None:
    """Compute the history of finished chunks as their rollout did: by the same passes, in the same order.

    The first chunks are denoised once more if the cache learns from that.
    """
    cache = denoiser.cache
    for chunk in done.chunks:
        step = cache.begin(chunk)
        if prompt_at is not None:
            denoiser.set_prompt(prompt_at(chunk.index))

        def update(frames: Frames, commit: Commit | None, chunk: ChunkPlan = chunk) -> None:
            if commit is not None:
                denoiser.update_cache(chunk, frames, done.latents[:, :, list(frames)], commit)
                cache.settle(commit)

        update(chunk.prefill, step.prefill)
        if chunk.makes and cache.is_learning and denoiser.observes_steps:
            denoiser.denoise(chunk, noise(chunk), lambda: None)
        update(chunk.makes, step.commit)
