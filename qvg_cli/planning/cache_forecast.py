"""What the cache of a planned video will hold, to the byte, before any tensor exists. No torch.

Goes through the plan as `kv_cache.KVCache` does, with sizes in place of tensors. All layers hold the same
frames in the same way, so one layer's entries are followed, and its changes repeated for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvg_cli.config.schema import CacheConfig
from qvg_cli.planning.cache_plan import Frames, plan_packs, policy_of, unpacked_spec
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
from qvg_cli.planning.ledger import Ledger, MemorySample, add, total
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


def predict_history_files(config: CacheConfig, plan: VideoPlan, shape: CacheShape) -> int:
    """The most bytes that a run's `state/` holds of its history at once, headers left out.

    Only a history that is packed is put away, each entry once; a file goes when nothing of it was held after
    the last two chunks.

    Raises:
        ValueError: As `predict_payload`.
    """
    if not {config.k.scheme, config.v.scheme}.isdisjoint(("none", "bf16")):
        return 0
    layers = _Layers(config, plan, shape)
    layers.run()
    return layers.most_file_bytes


@dataclass(frozen=True)
class _Entry:
    """What one layer holds of some frames."""

    frames: Frames
    is_packed: bool
    payload: PayloadBytes

    @property
    def name(self) -> tuple[Frames, bool]:
        """What tells it from any other."""
        return self.frames, self.is_packed


class _Layers:
    """One layer's entries and the ledger of all."""

    def __init__(self, config: CacheConfig, plan: VideoPlan, shape: CacheShape) -> None:
        self._plan = plan
        self._shape = shape
        self._packed: tuple[CodecSpec, CodecSpec] = (config.k, config.v)
        self._unpacked: tuple[CodecSpec, CodecSpec] = (unpacked_spec(config), unpacked_spec(config))
        policy = policy_of(config, tokens_per_frame=plan.tokens_per_frame, sink_frames=shape.sink_frames)
        self._packs = plan_packs(plan.chunks, policy)
        self._entries: list[_Entry] = []
        self._changes: list[tuple[PayloadBytes, bool]] = []
        self._known: dict[tuple[bool, int], PayloadBytes] = {}
        self.most_file_bytes = 0
        self._file_bytes: dict[int, int] = {}
        self._born: dict[tuple[Frames, bool], int] = {}

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
            for entry in [entry for entry in self._entries if gone.issuperset(entry.frames)]:
                self._drop(entry)
            self._book(ledger)
            ledger.begin_peak()
            start = len(frames)
            self._changes = []
            if chunk.commits:
                self._commit(chunk, packs)
            self._book(ledger)
            frames.update(chunk.commits)
            self._put_away(chunk.index, gone)
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
                for entry in [entry for entry in self._entries if set(entry.frames) <= set(group)]:
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
        self._entries.append(_Entry(frames, is_packed, self._known[wanted]))
        self._changes.append((self._known[wanted], True))

    def _drop(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self._changes.append((entry.payload, False))

    def _put_away(self, index: int, gone: set[int]) -> None:
        """As `RunState.save` and `ChunkStore.commit`, on sizes."""
        is_last = index + 1 == len(self._plan.chunks)
        gone = gone if is_last else gone.union(self._plan.chunks[index + 1].evicts)
        held = [entry for entry in self._entries if not is_last and not gone.issuperset(entry.frames)]
        new = [entry for entry in held if entry.name not in self._born]
        self._file_bytes[index] = self._shape.num_layers * sum(total(entry.payload) for entry in new)
        self.most_file_bytes = max(self.most_file_bytes, sum(self._file_bytes.values()))
        alive = set(self._born.values())
        self._born = {entry.name: self._born.get(entry.name, index) for entry in held}
        alive.update(self._born.values())
        self._file_bytes = {
            chunk: count for chunk, count in self._file_bytes.items() if chunk in alive or chunk == index
        }

    def _book(self, ledger: Ledger) -> None:
        """Enter the changes of one layer for every layer, one layer after the other."""
        for _ in range(self._shape.num_layers):
            for payload, is_added in self._changes:
                if is_added:
                    ledger.add(payload)
                else:
                    ledger.remove(payload)
