"""The loop that makes a video: for each chunk prefill, denoise, commit, decode, emit. It knows no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from qvg_cli.cache.probe import Probe
from qvg_cli.models.base import Denoiser
from qvg_cli.models.decoder import Decoder
from qvg_cli.planning.cache_plan import Commit
from qvg_cli.planning.chunks import ChunkPlan, Frames
from qvg_cli.planning.ledger import LayerLosses, MemorySample


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
        losses: What packing by other presets would have done, by preset, if this chunk was measured.
        probe_seconds: What that took, which is not in `seconds`.
    """

    chunk: ChunkPlan
    latents: Tensor
    frames: Tensor
    memory: MemorySample
    seconds: float
    phases: Mapping[str, float]
    losses: Mapping[str, tuple[LayerLosses, ...]] = field(default_factory=dict)
    probe_seconds: float = 0.0


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
    probe: Probe | None = None,
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
        probe: Measures what other caches would lose; takes no part in the times and the device's peaks.
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
            _fill_cache(done, denoiser, prompt_at, probe)
        decoder.skip(done.chunks, done.latents, num_shown)
    for chunk in chunks:
        watch = _Stopwatch(device, probe)
        losses: Mapping[str, tuple[LayerLosses, ...]] = {}
        step = cache.begin(chunk)
        if probe is not None:
            probe.begin(chunk)
        if prompt_at is not None:
            denoiser.set_prompt(prompt_at(chunk.index))
        if chunk.prefill:
            given = decoder.recall(torch.cat([known[frame] for frame in chunk.prefill], dim=2))
            if step.prefill is not None:
                denoiser.update_cache(chunk, chunk.prefill, given, step.prefill)
                cache.settle(step.prefill)
                on_step()
            watch.lap("prefill")
            if probe is not None:
                with watch.aside():
                    probe.follow("prefill")
        if chunk.makes:
            made = denoiser.denoise(chunk, noise(chunk), on_step)
            watch.lap("denoise")
            if probe is not None:
                with watch.aside():
                    losses = probe.measure()
            known.extend(made.split(1, dim=2))
            if step.commit is not None:
                denoiser.update_cache(chunk, chunk.makes, made, step.commit)
                cache.settle(step.commit)
                on_step()
                watch.lap("commit")
                if probe is not None:
                    with watch.aside():
                        probe.follow("commit")
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
        memory = cache.sample(chunk, watch.device_peak_bytes)
        yield ChunkResult(
            chunk, latents, frames, memory, watch.seconds, watch.laps, losses, watch.aside_seconds
        )


class _Stopwatch:
    """Times of a chunk's phases, and the device's peak; a GPU has ended a phase when it counts as ended.

    Attributes:
        aside_seconds: What was left out.
    """

    def __init__(self, device: torch.device, probe: Probe | None) -> None:
        self.laps: dict[str, float] = {}
        self.aside_seconds = 0.0
        self._device = device
        self._probe = probe
        self._peak_bytes = 0
        self._started = self._last = time.perf_counter()
        self._begin_peak()

    @property
    def seconds(self) -> float:
        """From the beginning to the last lap."""
        return self._last - self._started - self.aside_seconds

    @property
    def device_peak_bytes(self) -> int | None:
        """The allocator's peak; `None` on a CPU."""
        if self._device.type != "cuda":
            return None
        held = 0 if self._probe is None else self._probe.held_bytes
        return max(self._peak_bytes, torch.cuda.max_memory_allocated(self._device) - held)

    def lap(self, name: str) -> None:
        """Count the time since the last lap as that of a phase."""
        self.laps[name] = self.laps.get(name, 0.0) + self._elapsed()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave out what is done here."""
        self._peak_bytes = self.device_peak_bytes or 0
        yield
        self.aside_seconds += self._elapsed()
        self._begin_peak()

    def _elapsed(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        last, self._last = self._last, time.perf_counter()
        return self._last - last

    def _begin_peak(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)


def _fill_cache(
    done: Done, denoiser: Denoiser, prompt_at: Callable[[int], Tensor] | None, probe: Probe | None
) -> None:
    """Compute the history of finished chunks as their rollout did: by the same passes, in the same order."""
    for chunk in done.chunks:
        step = denoiser.cache.begin(chunk)
        if probe is not None:
            probe.begin(chunk)
        if prompt_at is not None:
            denoiser.set_prompt(prompt_at(chunk.index))
        passes: tuple[tuple[Literal["prefill", "commit"], Frames, Commit | None], ...] = (
            ("prefill", chunk.prefill, step.prefill),
            ("commit", chunk.makes, step.commit),
        )
        for kind, frames, commit in passes:
            if commit is not None:
                denoiser.update_cache(chunk, frames, done.latents[:, :, list(frames)], commit)
                denoiser.cache.settle(commit)
                if probe is not None:
                    probe.follow(kind)
