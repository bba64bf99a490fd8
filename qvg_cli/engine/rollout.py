"""The loop that makes a video: for each chunk prefill, denoise, commit, decode, emit. It knows no model."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from qvg_cli.cache.probe import Probe
from qvg_cli.models.base import Denoiser
from qvg_cli.models.decoder import Decoder, Pixels
from qvg_cli.planning.cache_plan import Commit
from qvg_cli.planning.chunks import ChunkPlan, Frames, Geometry
from qvg_cli.planning.ledger import LayerLosses, MemorySample
from qvg_cli.randomness import derive_seed


@dataclass(frozen=True)
class ChunkResult:
    """What one chunk added to the video.

    On a GPU its pixels may still be computed, beside the next chunk; what needs them waits for them.

    Attributes:
        chunk: The plan of the chunk.
        latents: `[B, C, F, h, w]` of the frames that the chunk added, made or given; F may be 0.
        pixels: Its frames that were not shown before, in parts.
        memory: The cache around this chunk.
        began: When it began, by `time.perf_counter`.
        seconds: Until the cache had it, and its pixels if they are not computed beside the model.
        laps: The same by phase: "prefill", "denoise", "decode", "commit".
        end: When its last phase ended on the GPU; `None` on a CPU.
        losses: What packing by other presets would have done, by preset, if this chunk was measured.
        probe_seconds: What that took, which is not in `seconds`.
    """

    chunk: ChunkPlan
    latents: Tensor
    pixels: Sequence[Pixels]
    memory: MemorySample
    began: float
    seconds: float
    laps: Mapping[str, float]
    end: torch.cuda.Event | None = None
    losses: Mapping[str, tuple[LayerLosses, ...]] = field(default_factory=dict)
    probe_seconds: float = 0.0

    @property
    def num_frames(self) -> int:
        """Pixel frames."""
        return sum(part.num_frames for part in self.pixels)

    @property
    def frames(self) -> Tensor:
        """`[B, n, height, width, 3]` uint8 pixels on the CPU, once they are there."""
        return torch.cat([part.wait() for part in self.pixels], dim=1)

    @property
    def phases(self) -> Mapping[str, float]:
        """Seconds by phase, once the pixels are there; "decode" may be beside another chunk's phases."""
        return {**self.laps, "decode": self.laps.get("decode", 0.0) + sum(p.seconds for p in self.pixels)}

    @property
    def late_seconds(self) -> float:
        """How long after its end its pixels came, once they are there."""
        return 0.0 if self.end is None else self.pixels[-1].seconds_after(self.end)


@dataclass(frozen=True)
class Done:
    """What an earlier process has made of the same video: its first chunks and their latents.

    Attributes:
        latents: `[B, C, F, h, w]`, on the model's device.
        has_history: Whether the cache holds their keys and values; else they are computed again.
    """

    chunks: Sequence[ChunkPlan]
    latents: Tensor
    has_history: bool = True


def seeded_noise(
    geometry: Geometry, seed: int, dtype: torch.dtype, device: torch.device, *, batch: int = 1
) -> Callable[[ChunkPlan], Callable[[], Tensor]]:
    """For a chunk, what draws its noise `[B, C, F, h, w]` from (seed, index) at every call, on the CPU."""

    def of_chunk(chunk: ChunkPlan) -> Callable[[], Tensor]:
        channels, height, width = geometry.latent_shape
        shape = (batch, channels, len(chunk.makes), height, width)
        generator = torch.Generator().manual_seed(derive_seed(seed, "noise", chunk.index))
        # Pinned, so that the copy does not wait until the device has done all before.
        is_gpu = device.type == "cuda"
        draw = partial(torch.randn, shape, generator=generator, pin_memory=is_gpu)
        # Rounded there: what the host had rounded would not be pinned.
        return lambda: draw().to(device, non_blocking=True).to(dtype)

    return of_chunk


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
    on_frames: Callable[[Tensor], None] | None = None,
) -> Iterator[ChunkResult]:
    """Make a video chunk by chunk; each result is whole when it is yielded, but for its pixels on a GPU.

    Args:
        chunks: Those still to be made; one that is not known yet may come when it is asked for.
        noise: For a chunk, a function that draws `[B, C, F, h, w]` anew at every call; see `seeded_noise`.
        prompt_at: The prompt embeddings of a chunk, by its index; `None` leaves the denoiser's.
        context: `[B, C, F, h, w]` given latents of the first frames.
        num_shown: Of them, the first so many have been seen by the decoder and are not decoded again.
        done: Chunks that were made before.
        probe: Measures what other caches would lose; takes no part in the times and the device's peaks.
        on_step: Called after every model call.
        on_frames: Called with pixels `[B, n, height, width, 3]` uint8 as soon as they are decoded; results
            are whole then.
    """
    cache, device = denoiser.cache, denoiser.device
    known = [] if context is None else list(context.split(1, dim=2))
    num_emitted = 0
    if done is not None:
        num_emitted = done.latents.shape[2]
        known[:num_emitted] = done.latents.split(1, dim=2)
        if not done.has_history:
            _fill_cache(done, denoiser, noise, prompt_at, probe)
        decoder.skip(done.chunks, done.latents, num_shown)
    for chunk in chunks:
        watch, peak = _Stopwatch(device), _DevicePeak(device, probe)
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
                with peak.aside(watch):
                    probe.follow("prefill")
        if chunk.makes:
            made = denoiser.denoise(chunk, noise(chunk), on_step)
            watch.lap("denoise")
            if probe is not None:
                with peak.aside(watch):
                    losses = probe.measure()
            known.extend(made.split(1, dim=2))
        end = max(num_emitted, max(chunk.frames) + 1)
        # A chunk that only changes the cache adds no frame.
        latents = torch.cat(known[num_emitted:end] or [known[0][:, :, :0]], dim=2)
        pixels: list[Pixels] = []
        # Before the commit, so that they are seen sooner; a GPU that can computes both side by side.
        for part in decoder.decode_each(latents[:, :, max(0, num_shown - num_emitted) :]):
            pixels.append(part)
            if part.is_there:
                frames = part.wait()
                if on_frames is not None:
                    on_frames(frames)
        num_emitted = end
        late = [part for part in pixels if not part.is_there]
        watch.lap("" if any(part.is_beside for part in late) else "decode")
        if chunk.makes and step.commit is not None:
            denoiser.update_cache(chunk, chunk.makes, made, step.commit)
            cache.settle(step.commit)
            on_step()
            watch.lap("commit")
            if probe is not None:
                with peak.aside(watch):
                    probe.follow("commit")
        if on_frames is not None:
            for part in late:
                on_frames(part.wait())
        watch.stop()
        memory = cache.sample(chunk, peak.bytes)
        probe_seconds = watch.laps.pop("probe", 0.0)
        yield ChunkResult(
            chunk,
            latents,
            pixels,
            memory,
            watch.began,
            watch.seconds - probe_seconds,
            watch.laps,
            watch.end,
            losses,
            probe_seconds,
        )


class _Stopwatch:
    """Times of a chunk's phases, on a GPU by what it has done; nothing waits for it before the end."""

    def __init__(self, device: torch.device) -> None:
        self.began = time.perf_counter()
        self.seconds = 0.0
        self.laps: dict[str, float] = {}
        self._is_gpu = device.type == "cuda"
        self._marks = [("", self._mark())]

    def lap(self, name: str) -> None:
        """Count the time since the last lap as that of a phase; without a name as none's."""
        self._marks.append((name, self._mark()))

    def stop(self) -> None:
        """Wait until all phases have ended, and take their times."""
        if self.end is not None:
            self.end.synchronize()
        self.seconds = time.perf_counter() - self.began
        for (_, before), (name, mark) in pairwise(self._marks):
            seconds = before.elapsed_time(mark) / 1000 if self._is_gpu else mark - before
            if name:
                self.laps[name] = self.laps.get(name, 0.0) + seconds

    @property
    def end(self) -> torch.cuda.Event | None:
        """The end of the last phase on a GPU."""
        return self._marks[-1][1] if self._is_gpu else None

    def _mark(self) -> Any:
        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record()
        return event


class _DevicePeak:
    """The allocator's peak of a chunk, without what a probe holds and does."""

    def __init__(self, device: torch.device, probe: Probe | None) -> None:
        self._device = device
        self._probe = probe
        self._so_far = 0
        self._reset()

    @property
    def bytes(self) -> int | None:
        """`None` on a CPU."""
        if self._device.type != "cuda":
            return None
        held = 0 if self._probe is None else self._probe.held_bytes
        return max(self._so_far, torch.cuda.max_memory_allocated(self._device) - held)

    @contextmanager
    def aside(self, watch: _Stopwatch) -> Iterator[None]:
        """Leave out what is done here, and count its time as the probe's."""
        self._so_far = self.bytes or 0
        yield
        watch.lap("probe")
        self._reset()

    def _reset(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)


def _fill_cache(
    done: Done,
    denoiser: Denoiser,
    noise: Callable[[ChunkPlan], Callable[[], Tensor]],
    prompt_at: Callable[[int], Tensor] | None,
    probe: Probe | None,
) -> None:
    """Compute the history of finished chunks as their rollout did: by the same passes, in the same order.

    Chunks are denoised once more as long as a cache learns from that.
    """
    cache = denoiser.cache

    def is_learning() -> bool:
        return cache.is_learning or (probe is not None and probe.is_learning)

    for chunk in done.chunks:
        step = cache.begin(chunk)
        if probe is not None:
            probe.begin(chunk)
        if prompt_at is not None:
            denoiser.set_prompt(prompt_at(chunk.index))
        passes: tuple[tuple[Literal["prefill", "commit"], Frames, Commit | None], ...] = (
            ("prefill", chunk.prefill, step.prefill),
            ("commit", chunk.makes, step.commit),
        )
        for kind, frames, commit in passes:
            if kind == "commit" and chunk.makes and is_learning() and denoiser.observes_steps:
                denoiser.denoise(chunk, noise(chunk), lambda: None)
            if commit is not None:
                denoiser.update_cache(chunk, frames, done.latents[:, :, list(frames)], commit)
                cache.settle(commit)
                if probe is not None:
                    probe.follow(kind)
