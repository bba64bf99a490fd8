"""What the cache of a planned video will hold, to the byte, before any tensor exists. No torch.

Goes through the plan as `kv_cache.KVCache` does, with sizes in place of tensors. All layers hold the same
frames in the same way, so one layer's entries are followed, and its changes repeated for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvg_cli.cache.accounting import Ledger, MemorySample, add
from qvg_cli.cache.policy import Frames, plan_packs, policy_of, unpacked_spec
from qvg_cli.config import CacheConfig
from qvg_cli.plan import ChunkPlan, VideoPlan
from qvg_kernels.spec import CodecSpec, PayloadBytes


@dataclass(frozen=True)
class CacheShape:
    """The keys and values of a model.

    Attributes:
        num_layers: Self-attention layers.
        heads: Of one layer, times the batch.
        head_dim: Channels of one head.
        element_bytes: Of a value as the model makes it.
        sink_frames: First latent frames that a window never drops.
    """

    num_layers: int
    heads: int
    head_dim: int
    element_bytes: int = 2
    sink_frames: int = 0


def predict_payload(config: CacheConfig, plan: VideoPlan, shape: CacheShape) -> list[MemorySample]:
    """What `memory.json` of a run will say of the cache, a sample a chunk; the device's peak is none.

    Raises:
        ValueError: The codecs do not take the head size.
    """
    return _Layers(config, plan, shape).run()


class _Layers:
    """One layer's entries and the ledger of all."""

    def __init__(self, config: CacheConfig, plan: VideoPlan, shape: CacheShape) -> None:
        self._plan = plan
        self._shape = shape
        self._packed: tuple[CodecSpec, CodecSpec] = (config.k, config.v)
        self._unpacked: tuple[CodecSpec, CodecSpec] = (unpacked_spec(config), unpacked_spec(config))
        policy = policy_of(config, tokens_per_frame=plan.tokens_per_frame, sink_frames=shape.sink_frames)
        self._packs = plan_packs(plan.chunks, policy)
        self._entries: list[tuple[Frames, PayloadBytes]] = []
        self._changes: list[tuple[PayloadBytes, bool]] = []
        self._known: dict[tuple[bool, int], PayloadBytes] = {}

    def run(self) -> list[MemorySample]:
        """Go through the plan."""
        ledger, gone, frames = Ledger(), set[int](), set[int]()
        shape = self._shape
        frame_bytes = 4 * self._plan.tokens_per_frame * shape.heads * shape.head_dim * shape.num_layers
        samples = []
        for chunk, packs in zip(self._plan.chunks, self._packs, strict=True):
            gone.update(chunk.evicts)
            frames.difference_update(chunk.evicts)
            self._changes = []
            for entry in [entry for entry in self._entries if gone.issuperset(entry[0])]:
                self._drop(entry)
            self._book(ledger)
            ledger.begin_peak()
            start = len(frames)
            self._changes = []
            if chunk.commits:
                self._commit(chunk, packs)
            self._book(ledger)
            frames.update(chunk.commits)
            samples.append(
                MemorySample(
                    chunk=chunk.index,
                    num_frames=max(chunk.frames) + 1,
                    peak_bytes=dict(ledger.peak),
                    end_bytes=dict(ledger.held),
                    bf16_peak_bytes=max(start, len(frames)) * frame_bytes,
                    bf16_end_bytes=len(frames) * frame_bytes,
                    device_peak_bytes=None,
                )
            )
        return samples

    def _commit(self, chunk: ChunkPlan, packs: Sequence[Frames]) -> None:
        """As `LayerCache.append`."""
        self._store(chunk.commits, is_packed=chunk.commits in packs)
        for group in packs:
            if group != chunk.commits:
                for entry in [entry for entry in self._entries if set(entry[0]) <= set(group)]:
                    self._drop(entry)
                self._store(group, is_packed=True)

    def _store(self, frames: Frames, *, is_packed: bool) -> None:
        wanted = is_packed, len(frames)
        if wanted not in self._known:
            tokens, shape = len(frames) * self._plan.tokens_per_frame, self._shape
            key, value = (
                spec.payload_bytes(shape.heads, tokens, shape.head_dim, shape.element_bytes)
                for spec in (self._packed if is_packed else self._unpacked)
            )
            self._known[wanted] = add(key, value)
        self._entries.append((frames, self._known[wanted]))
        self._changes.append((self._known[wanted], True))

    def _drop(self, entry: tuple[Frames, PayloadBytes]) -> None:
        self._entries.remove(entry)
        self._changes.append((entry[1], False))

    def _book(self, ledger: Ledger) -> None:
        """Enter the changes of one layer for every layer, one layer after the other."""
        for _ in range(self._shape.num_layers):
            for payload, is_added in self._changes:
                if is_added:
                    ledger.add(payload)
                else:
                    ledger.remove(payload)
