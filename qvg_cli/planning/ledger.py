"""What the cache holds, in bytes by kind, against a BF16 cache of the same frames.

Payload bytes are sums of tensor sizes and are ours; the device peak is the allocator's. Both are reported.
torch is imported when a device is asked, so that a planned video can be accounted for without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvg_kernels.spec import PayloadBytes

if TYPE_CHECKING:
    import torch

    from qvg_cli.cache.kv_cache import KVCache
    from qvg_cli.planning.chunks import ChunkPlan


@dataclass(frozen=True)
class MemorySample:
    """The cache around one chunk.

    Attributes:
        chunk: Index of the chunk in the plan.
        num_frames: Latent frames of the video so far.
        peak_bytes: Payload by kind at the fullest moment of the chunk.
        end_bytes: Payload by kind after the chunk.
        bf16_peak_bytes: What a BF16 cache would hold for the same frames at its fullest moment.
        bf16_end_bytes: What a BF16 cache would hold for the same frames after the chunk.
        device_peak_bytes: Allocator's peak during the chunk; none on a CPU.
    """

    chunk: int
    num_frames: int
    peak_bytes: PayloadBytes
    end_bytes: PayloadBytes
    bf16_peak_bytes: int
    bf16_end_bytes: int
    device_peak_bytes: int | None


def total(payload: PayloadBytes) -> int:
    """All kinds together."""
    return sum(payload.values())


def add(first: PayloadBytes, second: PayloadBytes) -> PayloadBytes:
    """Sum by kind."""
    return {kind: first.get(kind, 0) + second.get(kind, 0) for kind in {**first, **second}}


class Ledger:
    """A running account of the payload, so that the fullest moment inside a chunk is not missed."""

    def __init__(self) -> None:
        self.held: PayloadBytes = {}
        self.peak: PayloadBytes = {}

    def add(self, payload: PayloadBytes) -> None:
        """Enter what was stored."""
        self.held = add(self.held, payload)
        if total(self.held) > total(self.peak):
            self.peak = dict(self.held)

    def remove(self, payload: PayloadBytes) -> None:
        """Take out what was dropped."""
        left = {kind: count - payload.get(kind, 0) for kind, count in self.held.items()}
        self.held = {kind: count for kind, count in left.items() if count}

    def begin_peak(self) -> None:
        """Forget the peak so far; the fullest moment from now on counts."""
        self.peak = dict(self.held)


class MemoryRecorder:
    """Takes one `MemorySample` a chunk."""

    def __init__(self, cache: KVCache, device: torch.device) -> None:
        self._cache = cache
        self._device = device
        self._bf16_start_bytes = 0

    def begin(self) -> None:
        """Start a chunk; the cache has dropped what the chunk does not read."""
        self._bf16_start_bytes = self._cache.bf16_bytes
        if self._device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)

    def sample(self, chunk: ChunkPlan, num_frames: int) -> MemorySample:
        """Account for the chunk that has just ended, the video being `num_frames` latent frames long."""
        device_peak_bytes = None
        if self._device.type == "cuda":
            import torch

            device_peak_bytes = torch.cuda.max_memory_allocated(self._device)
        return MemorySample(
            chunk=chunk.index,
            num_frames=num_frames,
            peak_bytes=dict(self._cache.ledger.peak),
            end_bytes=dict(self._cache.ledger.held),
            bf16_peak_bytes=max(self._bf16_start_bytes, self._cache.bf16_bytes),
            bf16_end_bytes=self._cache.bf16_bytes,
            device_peak_bytes=device_peak_bytes,
        )
