"""What the cache holds, in bytes by kind, against a BF16 cache of the same frames.

Payload bytes are sums of tensor sizes and are ours; the device peak is the allocator's. Both are reported. No
torch, so that a planned video can be accounted for as a real one is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from statistics import fmean

from qvg_kernels.spec import PayloadBytes


@dataclass(frozen=True)
class ProcessMemory:
    """What one of several processes held around a chunk; see `MemorySample`."""

    peak_bytes: int
    end_bytes: int
    device_peak_bytes: int | None


@dataclass(frozen=True)
class MemorySample:
    """The cache around one chunk, that of all processes, at the chunk's fullest moment and after it.

    Attributes:
        num_frames: Latent frames of the video so far.
        peak_bytes: Payload by kind.
        bf16_peak_bytes: What a BF16 cache would hold for the same frames.
        device_peak_bytes: The allocator's peak during the chunk, on the fullest device; `None` on a CPU.
        processes: What each of them held, if there are several.
        logit_rms: Root mean squared error of the logits in nats that packing is predicted to bring to the
            layers that were looked at, by number. No part of the account, which a forecast equals.
    """

    chunk: int
    num_frames: int
    peak_bytes: PayloadBytes
    end_bytes: PayloadBytes
    bf16_peak_bytes: int
    bf16_end_bytes: int
    device_peak_bytes: int | None
    processes: tuple[ProcessMemory, ...] = ()
    logit_rms: Mapping[int, float] = field(default_factory=dict, compare=False)


def join(samples: Sequence[MemorySample]) -> MemorySample:
    """The account of a chunk that several processes have made together."""
    first = samples[0]
    device_peaks = [sample.device_peak_bytes for sample in samples if sample.device_peak_bytes is not None]
    return replace(
        first,
        peak_bytes=reduce(add, (sample.peak_bytes for sample in samples)),
        end_bytes=reduce(add, (sample.end_bytes for sample in samples)),
        bf16_peak_bytes=sum(sample.bf16_peak_bytes for sample in samples),
        bf16_end_bytes=sum(sample.bf16_end_bytes for sample in samples),
        device_peak_bytes=max(device_peaks, default=None),
        logit_rms={
            layer: root_mean_square(sample.logit_rms[layer] for sample in samples)
            for layer in first.logit_rms
        },
        processes=tuple(
            ProcessMemory(total(sample.peak_bytes), total(sample.end_bytes), sample.device_peak_bytes)
            for sample in samples
        ),
    )


@dataclass(frozen=True)
class LayerLosses:
    """What packing does to the attention of one layer in one chunk, means over heads and a few queries.

    Attributes:
        logit_rms: Root mean squared error of the logits of packed keys, in nats.
        logit_db: The same over the deviation of a query's logits, in dB.
        token_shift: Share of the queries whose largest logit over packed keys is that of another key.
        attention_moved: Share of the attention weights that goes to other keys.
        history_mass: Weight that packed keys gain; below 0 they lose it.
    """

    layer: int
    logit_rms: float
    logit_db: float
    token_shift: float
    attention_moved: float
    history_mass: float


def by_layer(rms: Mapping[str, float] | Sequence[float]) -> dict[int, float]:
    """Errors of logits by layer, as JSON has them; earlier records list those of all layers."""
    pairs = rms.items() if isinstance(rms, Mapping) else enumerate(rms)
    return {int(layer): value for layer, value in pairs}


def root_mean_square(values: Iterable[float]) -> float:
    """Of some values that are root mean squares themselves, of as many parts each."""
    return math.sqrt(fmean(value**2 for value in values))


def total(payload: PayloadBytes) -> int:
    return sum(payload.values())


def add(first: PayloadBytes, second: PayloadBytes) -> PayloadBytes:
    return {kind: first.get(kind, 0) + second.get(kind, 0) for kind in {**first, **second}}


class Ledger:
    """A running account of the payload, so that the fullest moment inside a chunk is not missed."""

    def __init__(self) -> None:
        self.held: PayloadBytes = {}
        self.peak: PayloadBytes = {}

    def add(self, payload: PayloadBytes) -> None:
        self.held = add(self.held, payload)
        if total(self.held) > total(self.peak):
            self.peak = dict(self.held)

    def remove(self, payload: PayloadBytes) -> None:
        left = {kind: count - payload.get(kind, 0) for kind, count in self.held.items()}
        self.held = {kind: count for kind, count in left.items() if count}

    def begin_peak(self) -> None:
        """Forget the peak so far; the fullest moment from now on counts."""
        self.peak = dict(self.held)


def bf16_frame_bytes(tokens_per_frame: int, layer_width: int, num_layers: int) -> int:
    """Keys and values of one latent frame in all layers of a BF16 cache, each with `layer_width` channels."""
    return 2 * 2 * tokens_per_frame * layer_width * num_layers
