"""The attention history of one video: per layer, packed spans and the chunks that still wait for theirs.

Keys are stored after the key norm and before any rotation, values raw. Invariants: reading changes nothing; a
span is encoded once; what a layer holds is exactly the frames that the plan says, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from qvg_cli.cache.accounting import Ledger, add
from qvg_cli.cache.policy import Frames, plan_packs, policy_of, unpacked_spec
from qvg_cli.config import CacheConfig
from qvg_cli.errors import QvgError
from qvg_cli.plan import ChunkPlan, VideoPlan
from qvg_cli.randomness import derive_seed
from qvg_kernels.attention.attend import Arithmetic, attend
from qvg_kernels.attention.history import DEFAULT_WORKSPACE_BYTES, History, OwnKeys, StoredBlock, Workspace
from qvg_kernels.codec import (
    Codec,
    FiniteCheck,
    NonFiniteError,
    PackedTensor,
    encode_pair,
    first_error,
)
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.rope.placement import Placement
from qvg_kernels.spec import PayloadBytes


class Rotation(Protocol):
    """How tokens are placed when they are read. Equal rotations place alike."""

    def placement(self, frames: Frames) -> Placement:
        """Where the tokens of `frames` stand."""
        ...


@dataclass(frozen=True)
class CodecPair:
    """Codecs of the keys and of the values."""

    key: Codec
    value: Codec


@dataclass(frozen=True, eq=False)
class Entry:
    """Keys and values of some frames, as a pair of codecs stores them.

    Attributes:
        frames: Absolute ids, in the order of the tokens.
        codecs: Those that made `key` and `value`.
    """

    frames: Frames
    codecs: CodecPair
    key: PackedTensor
    value: PackedTensor

    def payload_bytes(self) -> PayloadBytes:
        """Bytes held, by kind."""
        return add(self.key.payload_bytes(), self.value.payload_bytes())

    def decode(self, heads: slice, tokens: slice) -> tuple[Tensor, Tensor]:
        """Keys, not rotated, and values of a part: two `[B, h, s, D]`."""
        return (
            self.codecs.key.decode(self.key, heads=heads, tokens=tokens),
            self.codecs.value.decode(self.value, heads=heads, tokens=tokens),
        )


@dataclass
class LayerCache:
    """One layer's history."""

    index: int
    seed: int
    tokens_per_frame: int
    packed: CodecPair
    unpacked: CodecPair
    workspace: Workspace
    ledger: Ledger
    arithmetic: Arithmetic = "auto"
    entries: list[Entry] = field(default_factory=list)
    unsettled: list[tuple[Frames, FiniteCheck]] = field(default_factory=list)
    _histories: dict[object, History] = field(default_factory=dict)

    @property
    def frames(self) -> Frames:
        """Frames held, in stored order."""
        return tuple(frame for entry in self.entries for frame in entry.frames)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        frames: Frames,
        reads: Frames,
        rotation: Rotation,
        value_rotation: Rotation | None = None,
    ) -> Tensor:
        """Attend from a chunk to `reads` of the history and to the chunk itself; changes nothing.

        Args:
            query: `[B, H, S, D]`, rotated.
            key: `[B, H, S, D]` of the chunk's own `frames`, not rotated.
            value: `[B, H, S, D]` of the chunk.
            reads: Frames of the history, all held.
            value_rotation: Of the values; none leaves them as they are.
        """
        history = self._history(reads, rotation, value_rotation)
        value_placement = None if value_rotation is None else value_rotation.placement(frames)
        given = OwnKeys(key, value, rotation.placement(frames), value_placement)
        return attend(query, history, given, self.workspace, self.arithmetic)

    def append(self, key: Tensor, value: Tensor, frames: Frames, packs: Sequence[Frames]) -> None:
        """Store a finished chunk and pack the groups of frames that are due.

        Args:
            key: `[B, H, S, D]` after the key norm, before rotation.
            value: `[B, H, S, D]`.
            packs: Groups of unpacked frames, this chunk's among them or held; each becomes one span now.

        Raises:
            QvgError: A value is NaN or infinite, or the codecs do not take the head size; the message names
                the layer, and the frame and head of the first such value.
        """
        if tuple(frames) in packs:
            self._store(self._encode(self.packed, key, value, frames))
        else:
            self._store(self._encode(self.unpacked, key, value, frames))
        for group in packs:
            if group != tuple(frames):
                self._pack(group)

    def evict(self, gone: Set[int]) -> None:
        """Drop the entries whose frames are all `gone`; a span stays until the last of its frames goes."""
        for entry in [entry for entry in self.entries if set(entry.frames) <= gone]:
            self._drop(entry)

    def restore(self, entries: Sequence[Entry]) -> None:
        """Hold `entries` that this layer, or one like it, has made before."""
        for entry in entries:
            self._store(entry)

    def _history(self, reads: Frames, rotation: Rotation, value_rotation: Rotation | None) -> History:
        """What `reads` are stored in, made once for all steps of a chunk."""
        wanted = reads, rotation, value_rotation
        if wanted not in self._histories:
            self._histories[wanted] = History(tuple(self._segments(reads, rotation, value_rotation)))
        return self._histories[wanted]

    def _segments(
        self, reads: Frames, rotation: Rotation, value_rotation: Rotation | None
    ) -> Iterator[StoredBlock]:
        """A segment for each run of neighbouring frames of an entry."""
        wanted = set(reads)
        size = self.tokens_per_frame
        for entry in self.entries:
            placement = rotation.placement(entry.frames)
            value_placement = None if value_rotation is None else value_rotation.placement(entry.frames)
            start = None
            for position, frame in enumerate((*entry.frames, None)):
                if frame in wanted and start is None:
                    start = position
                elif frame not in wanted and start is not None:
                    yield StoredBlock(
                        entry.codecs.key,
                        entry.codecs.value,
                        entry.key,
                        entry.value,
                        placement,
                        value_placement,
                        start * size,
                        (position - start) * size,
                    )
                    start = None

    def _pack(self, group: Frames) -> None:
        """Replace the unpacked entries of `group` by one span."""
        members = [entry for entry in self.entries if set(entry.frames) <= set(group)]
        pairs = [entry.decode(slice(None), slice(None)) for entry in members]
        key = torch.cat([key for key, _ in pairs], dim=2)
        value = torch.cat([value for _, value in pairs], dim=2)
        span = self._encode(self.packed, key, value, group)
        for entry in members:
            self._drop(entry)
        self._store(span)

    def _encode(self, codecs: CodecPair, key: Tensor, value: Tensor, frames: Frames) -> Entry:
        key_seed = derive_seed(self.seed, "key", self.index, frames[0])
        value_seed = derive_seed(self.seed, "value", self.index, frames[0])
        checks: list[FiniteCheck] = []
        try:
            pair = encode_pair((codecs.key, codecs.value), (key, value), (key_seed, value_seed), checks)
        except NonFiniteError as error:
            raise self.refuse(frames, error) from error
        except ValueError as error:
            raise QvgError(f"cannot cache layer {self.index}: {error}") from error
        self.unsettled += [(frames, check) for check in checks]
        return Entry(frames, codecs, *pair)

    def refuse(self, frames: Frames, error: NonFiniteError) -> QvgError:
        """What to tell about a value of `frames` that is not finite."""
        frame = frames[error.token // self.tokens_per_frame]
        return QvgError(f"cannot cache layer {self.index}, latent frame {frame}: {error}")

    def _store(self, entry: Entry) -> None:
        self._histories.clear()
        self.entries.append(entry)
        self.ledger.add(entry.payload_bytes())

    def _drop(self, entry: Entry) -> None:
        self._histories.clear()
        self.entries.remove(entry)
        self.ledger.remove(entry.payload_bytes())


class KVCache:
    """The history of all layers, driven by the plan.

    Args:
        plan: Of the whole video.
        packs: For each chunk of the plan, the groups of frames to pack when it is committed.
        num_layers: Self-attention layers.
        layer_width: Channels of one layer's keys, heads times head size, times the batch.
        packed: Codecs of the spans.
        unpacked: Codecs of the chunks that wait or stay unpacked.
        seed: Of the codecs' starting points.
        workspace_bytes: For decoded keys and values of all layers together.
        arithmetic: How packed history is multiplied.
    """

    def __init__(
        self,
        plan: VideoPlan,
        packs: Sequence[tuple[Frames, ...]],
        *,
        num_layers: int,
        layer_width: int,
        packed: CodecPair,
        unpacked: CodecPair,
        seed: int,
        workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
        arithmetic: Arithmetic = "auto",
    ) -> None:
        self.ledger = Ledger()
        self._packs = packs
        self._gone: set[int] = set()
        self._frames: set[int] = set()
        self._bf16_frame_bytes = 2 * 2 * plan.tokens_per_frame * layer_width * num_layers
        workspace = Workspace(workspace_bytes)
        self.layers = [
            LayerCache(
                index, seed, plan.tokens_per_frame, packed, unpacked, workspace, self.ledger, arithmetic
            )
            for index in range(num_layers)
        ]

    def begin(self, chunk: ChunkPlan) -> None:
        """Drop what `chunk` no longer reads, and start its peak."""
        self._gone.update(chunk.evicts)
        self._frames.difference_update(chunk.evicts)
        for layer in self.layers:
            layer.evict(self._gone)
        self.ledger.begin_peak()

    @property
    def gone(self) -> frozenset[int]:
        """Frames that no chunk will read again."""
        return frozenset(self._gone)

    def restore(self, done: Sequence[ChunkPlan], layers: Sequence[Sequence[Entry]]) -> None:
        """Hold what was held after the chunks `done`; the cache is empty before.

        Args:
            layers: Entries of each layer, in stored order.
        """
        for chunk in done:
            self._gone.update(chunk.evicts)
            self._frames.difference_update(chunk.evicts)
            self._frames.update(chunk.commits)
        for layer, entries in zip(self.layers, layers, strict=True):
            layer.restore(entries)

    def packs(self, chunk: ChunkPlan) -> tuple[Frames, ...]:
        """Groups of frames that become spans when `chunk` is committed."""
        return self._packs[chunk.index]

    def commit(self, frames: Frames) -> None:
        """Note that a clean pass has filled every layer with `frames`.

        Raises:
            QvgError: A value of them is NaN or infinite, as in `LayerCache.append`; kernels find out without
                waiting for the device, and are asked here, once for all layers.
        """
        self._settle()
        self._frames.update(frames)

    def _settle(self) -> None:
        unsettled = [(layer, *item) for layer in self.layers for item in layer.unsettled]
        for layer in self.layers:
            layer.unsettled.clear()
        found = first_error([check for _, _, check in unsettled])
        if found is not None:
            number, error = found
            layer, frames, _ = unsettled[number]
            raise layer.refuse(frames, error) from error

    @property
    def bf16_bytes(self) -> int:
        """What a BF16 cache would hold for the frames that are in reach now."""
        return len(self._frames) * self._bf16_frame_bytes

    def payload_bytes(self) -> PayloadBytes:
        """Bytes held by all layers, by kind."""
        return dict(self.ledger.held)


def open_cache(
    config: CacheConfig, plan: VideoPlan, *, num_layers: int, layer_width: int, sink_frames: int, seed: int
) -> KVCache:
    """An empty cache for the planned video, as configured; see `KVCache` for the arguments."""
    policy = policy_of(config, tokens_per_frame=plan.tokens_per_frame, sink_frames=sink_frames)
    unpacked = build_codec(unpacked_spec(config))
    return KVCache(
        plan,
        plan_packs(plan.chunks, policy),
        num_layers=num_layers,
        layer_width=layer_width,
        packed=CodecPair(build_codec(config.k), build_codec(config.v)),
        unpacked=CodecPair(unpacked, unpacked),
        seed=seed,
        workspace_bytes=config.workspace_mib * 2**20,
        arithmetic=config.arithmetic,
    )
