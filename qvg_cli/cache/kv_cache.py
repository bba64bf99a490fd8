"""The attention history of one video: per layer, packed blocks and the chunks that still wait to be packed.

Keys are stored after the key norm and before any rotation, values raw. Invariants: reading changes nothing; a
block is encoded once; what a layer holds is exactly what the cache plan says, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from qvg_cli.cache.prediction import LogitErrors, chosen_layers, predicted_rms
from qvg_cli.cache.shaping import Matrices, Shaping, read_shipped
from qvg_cli.config.schema import CacheConfig
from qvg_cli.errors import QvgError
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.cache_plan import Block, CachePlan, CacheStep, Commit, Packing, Versions, unpacked_spec
from qvg_cli.planning.chunks import ChunkPlan, Frames, Geometry
from qvg_cli.planning.ledger import Ledger, MemorySample, add, bf16_frame_bytes
from qvg_cli.randomness import derive_seed
from qvg_kernels.attention.attend import Arithmetic, attend
from qvg_kernels.attention.history import DEFAULT_WORKSPACE_BYTES, History, OwnKeys, StoredBlock, Workspace
from qvg_kernels.codec import (
    Codec,
    FiniteCheck,
    NonFiniteError,
    PackedTensor,
    Shapers,
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


class Watcher:
    """Sees what passes through a layer; changes nothing."""

    def see_call(
        self, layer: LayerCache, query: Tensor, key: Tensor, frames: Frames, reads: Frames, rotation: Rotation
    ) -> None:
        """Take a call of `LayerCache.attend` whose values are not rotated."""

    def see_queries(self, layer: LayerCache, query: Tensor, placements: Sequence[Placement]) -> None:
        """Take a call of `LayerCache.observe`."""


@dataclass(frozen=True)
class CodecPair:
    """Codecs of the keys and of the values."""

    key: Codec
    value: Codec


@dataclass(frozen=True, eq=False)
class Entry:
    """Keys and values of one block in one layer, as the pair `codecs` stores them."""

    block: Block
    codecs: CodecPair
    key: PackedTensor
    value: PackedTensor

    def payload_bytes(self) -> PayloadBytes:
        return add(self.key.payload_bytes(), self.value.payload_bytes())

    def decode(self, heads: slice = slice(None), tokens: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Keys, not rotated, and values of a part: two `[B, h, s, D]`."""
        return (
            self.codecs.key.decode(self.key, heads=heads, tokens=tokens),
            self.codecs.value.decode(self.value, heads=heads, tokens=tokens),
        )


@dataclass
class LayerCache:
    """One layer's history.

    Attributes:
        entries: What is held, in the order in which it was stored.
        entry_of: The entry that a held frame is read from. A frame that was evicted is in none, even while a
            block keeps its tokens beside those of other frames.
        shipped: `[H, D, D]` matrices that came with the model and shape the errors of packed blocks.
        unsettled: Checks of new blocks that would have waited for the device.
        errors: What the blocks of the chunk in hand bring to logits.
    """

    index: int
    seed: int
    tokens_per_frame: int
    packed: CodecPair
    unpacked: CodecPair
    workspace: Workspace
    ledger: Ledger
    arithmetic: Arithmetic = "auto"
    shipped: Matrices | None = None
    entries: dict[Block, Entry] = field(default_factory=dict)
    entry_of: dict[int, Entry] = field(default_factory=dict)
    shaping: Shaping = field(init=False)
    unsettled: list[tuple[Frames, FiniteCheck]] = field(default_factory=list)
    watcher: Watcher | None = None
    errors: LogitErrors = field(default_factory=LogitErrors)
    _histories: dict[object, History] = field(default_factory=dict)
    _versions: Versions = field(init=False)

    def __post_init__(self) -> None:
        self.shaping = self._new_shaping()
        self._versions = Versions(self.ledger)

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
        out: Tensor | None = None,
    ) -> Tensor:
        """Attend from a chunk to `reads` of the history and to the chunk itself; changes nothing.

        Args:
            query: `[B, H, S, D]`, rotated.
            key: `[B, H, S, D]` of the chunk's own `frames`, not rotated.
            value: `[B, H, S, D]` of the chunk.
            reads: Frames of the history, all held; else a `QvgError`.
            value_rotation: Rotation of the values; `None` leaves them as they are.
            out: As in `attend` of the kernels.
        """
        history = self._history(reads, rotation, value_rotation)
        value_placement = None if value_rotation is None else value_rotation.placement(frames)
        given = OwnKeys(key, value, rotation.placement(frames), value_placement)
        if self.watcher is not None and value_rotation is None:
            self.watcher.see_call(self, query, key, frames, reads, rotation)
        return attend(query, history, given, self.workspace, self.arithmetic, out)

    @property
    def is_observing(self) -> bool:
        """Whether the queries of model calls are of use."""
        return self.watcher is not None or self.shaping.is_learning or self.errors.is_observing

    def observe(self, query: Tensor, frames: Frames, *rotations: Rotation) -> None:
        """Learn from queries `[B, H, S, D]` of a call, not rotated, how errors of keys are heard."""
        placements = [rotation.placement(frames) for rotation in rotations]
        if self.shaping.is_learning:
            self.shaping.observe(query, placements)
        self.errors.observe(query, placements, self.seed)
        if self.watcher is not None:
            self.watcher.see_queries(self, query, placements)

    def commit(self, key: Tensor, value: Tensor, frames: Frames, commit: Commit) -> None:
        """Store blocks of the frames that pass through the model, and pack those that are due.

        A `QvgError` names layer, frame and head of the first value that is NaN or infinite.

        Args:
            key: `[B, H, S, D]` of `frames`, after the key norm, before rotation.
            value: `[B, H, S, D]`.
        """
        for block in commit.stores:
            codecs = self.packed if block.is_packed else self.unpacked
            self._hold(
                self._encode(codecs, self._take(key, frames, block), self._take(value, frames, block), block)
            )
        for packing in commit.packings:
            self._pack(packing)

    def evict(self, step: CacheStep) -> None:
        """Forget the frames that `step` evicts, and drop the blocks that none of their frames is left of."""
        for frame in step.evicts:
            self.entry_of.pop(frame, None)
        for block in step.drops:
            self._drop(block)
        if step.empties:
            self._versions.clear()
            self.shaping = self._new_shaping()

    def restore(
        self, entries: Sequence[Entry], block_of: Mapping[int, Block], versions: Mapping[int, Matrices]
    ) -> None:
        """Hold `entries` that this layer, or one like it, has made before, and matrices by version."""
        for entry in entries:
            self._hold(entry)
        for version, matrices in sorted(versions.items()):
            self.shaping.take(version, matrices)
            self._versions.make(version, self.shaping.num_bytes(version))
        self.shaping.keep(self._versions.held)
        self.entry_of = {
            frame: self.entries[block] for frame, block in block_of.items() if block in self.entries
        }

    def _new_shaping(self) -> Shaping:
        return Shaping(self.packed.key, self.packed.value, self.shipped)

    def _take(self, states: Tensor, frames: Frames, block: Block) -> Tensor:
        """The tokens of a block, out of `[B, H, S, D]` states of `frames`."""
        if block.frames == frames:
            return states
        by_frame = states.unflatten(2, (len(frames), self.tokens_per_frame))
        return by_frame[:, :, [frames.index(frame) for frame in block.frames]].flatten(2, 3)

    def _history(self, reads: Frames, rotation: Rotation, value_rotation: Rotation | None) -> History:
        """What `reads` are stored in, made once for all steps of a chunk."""
        wanted = reads, rotation, value_rotation
        if wanted not in self._histories:
            missing = [frame for frame in reads if frame not in self.entry_of]
            if missing:
                raise QvgError(
                    f"latent frame {missing[0]} is not in the cache of layer {self.index}, which holds "
                    f"{sorted(self.entry_of)}: the plan reads a frame that was not committed, or was evicted"
                )
            self._histories[wanted] = History(tuple(self._segments(reads, rotation, value_rotation)))
        return self._histories[wanted]

    def _segments(
        self, reads: Frames, rotation: Rotation, value_rotation: Rotation | None
    ) -> Iterator[StoredBlock]:
        """A segment for each run of neighbouring frames of an entry."""
        wanted = set(reads)
        size = self.tokens_per_frame
        for entry in self.entries.values():
            frames = entry.block.frames
            placement = rotation.placement(frames)
            value_placement = None if value_rotation is None else value_rotation.placement(frames)
            start = None
            for position, frame in enumerate((*frames, None)):
                is_read = frame in wanted and frame is not None and self.entry_of[frame] is entry
                if is_read and start is None:
                    start = position
                elif not is_read and start is not None:
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

    def _pack(self, packing: Packing) -> None:
        pairs = [self.entries[member].decode() for member in packing.members]
        key = torch.cat([key for key, _ in pairs], dim=2)
        value = torch.cat([value for _, value in pairs], dim=2)
        packed = self._encode(self.packed, key, value, packing.block)
        for member in packing.members:
            self._drop(member)
        self._hold(packed)

    def _encode(self, codecs: CodecPair, key: Tensor, value: Tensor, block: Block) -> Entry:
        key_seed, value_seed = (
            derive_seed(self.seed, side, self.index, block.frames[0]) for side in ("key", "value")
        )
        seeds, states = (key_seed, value_seed), (key, value)
        checks: list[FiniteCheck] = []
        shapers: Shapers = (None, None)
        try:
            if codecs is self.packed:
                shapers = self.shaping.shapers(block.version, states, seeds, checks)
                self._versions.make(block.version, self.shaping.num_bytes(block.version))
                self.shaping.keep(self._versions.held)
            pair = encode_pair((codecs.key, codecs.value), states, seeds, checks, shapers)
        except NonFiniteError as error:
            raise self.refuse(block.frames, error) from error
        except ValueError as error:
            raise QvgError(f"cannot cache layer {self.index}: {error}") from error
        if codecs is not self.unpacked and codecs.key.spec.packs:
            self.errors.add(key, codecs.key, pair[0])
        self.unsettled += [(block.frames, check) for check in checks]
        return Entry(block, codecs, *pair)

    def refuse(self, frames: Frames, error: NonFiniteError) -> QvgError:
        frame = frames[error.token // self.tokens_per_frame]
        return QvgError(f"cannot cache layer {self.index}, latent frame {frame}: {error}")

    def _hold(self, entry: Entry) -> None:
        self._histories.clear()
        self.entries[entry.block] = entry
        self.entry_of.update(dict.fromkeys(entry.block.frames, entry))
        self._versions.hold(entry.block)
        self.ledger.add(entry.payload_bytes())

    def _drop(self, block: Block) -> None:
        self._histories.clear()
        # A block that the next chunk drops is not saved, so a resumed run does not hold it.
        if entry := self.entries.pop(block, None):
            self.ledger.remove(entry.payload_bytes())
            self._versions.drop(block)
            self.shaping.keep(self._versions.held)


class KVCache:
    """The history of all layers; carries out a `CachePlan`, which grows with the chunks that begin.

    Args:
        workspace_bytes: Size of decoded keys and values of all layers together.
        shipped: Matrices that shape errors, of each layer; without them they are learnt.

    Attributes:
        is_whole: Whether all heads are here, not only those of one of several processes.
    """

    def __init__(
        self,
        plan: CachePlan,
        geometry: Geometry,
        shape: CacheShape,
        *,
        packed: Sequence[CodecPair],
        unpacked: CodecPair,
        seed: int,
        workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
        arithmetic: Arithmetic = "auto",
        shipped: Sequence[Matrices] | None = None,
    ) -> None:
        self.plan = plan
        self.ledger = Ledger()
        self.is_whole = shape.num_parts == 1
        self._bf16_frame_bytes = bf16_frame_bytes(
            geometry.tokens_per_frame, shape.heads * shape.head_dim, shape.num_layers
        )
        self._bf16_start_bytes = 0
        self._num_held = 0
        workspace = Workspace(workspace_bytes)
        self.layers = [
            LayerCache(
                index,
                seed,
                geometry.tokens_per_frame,
                own,
                unpacked,
                workspace,
                self.ledger,
                arithmetic,
                None if shipped is None else shipped[index],
            )
            for index, own in enumerate(packed)
        ]

    def begin(self, chunk: ChunkPlan) -> CacheStep:
        """Drop what `chunk` evicts, start its peak, and return what its passes leave in every layer."""
        step = self.plan.advance(chunk)
        observed = chosen_layers(chunk, len(self.layers))
        for layer in self.layers:
            layer.evict(step)
            layer.shaping.begin()
            layer.errors.begin(chunk if layer.index in observed else None)
        self.ledger.begin_peak()
        self._num_held -= len(step.evicts)
        self._bf16_start_bytes = self.bf16_bytes
        return step

    def restore(
        self,
        done: Sequence[ChunkPlan],
        layers: Sequence[Sequence[Entry]],
        versions: Sequence[Mapping[int, Matrices]],
    ) -> None:
        """Hold what was held after the chunks `done`: entries of each layer in stored order, and matrices.

        The cache is empty before.
        """
        for chunk in done:
            self.plan.advance(chunk)
        for layer, entries, held in zip(self.layers, layers, versions, strict=True):
            layer.restore(entries, self.plan.block_of, held)
        self._num_held = len(self.plan.block_of)

    def settle(self, commit: Commit) -> None:
        """Count the frames of a commit that has filled every layer; `QvgError` if a value is not finite.

        Kernels find that out without waiting for the device, and are asked here, once for all layers.
        """
        unsettled = [(layer, *item) for layer in self.layers for item in layer.unsettled]
        for layer in self.layers:
            layer.unsettled.clear()
        found = first_error([check for _, _, check in unsettled])
        if found is not None:
            number, error = found
            layer, frames, _ = unsettled[number]
            raise layer.refuse(frames, error) from error
        self._num_held += len(commit.frames)

    @property
    def is_learning(self) -> bool:
        """Whether the matrices that shape errors depend on calls that are still to come."""
        return any(layer.shaping.is_learning for layer in self.layers)

    @property
    def bf16_bytes(self) -> int:
        """Size of a BF16 cache of the frames that are held now."""
        return self._num_held * self._bf16_frame_bytes

    def payload_bytes(self) -> PayloadBytes:
        return dict(self.ledger.held)

    def sample(self, chunk: ChunkPlan, device_peak_bytes: int | None) -> MemorySample:
        return MemorySample(
            chunk=chunk.index,
            num_frames=max(chunk.frames) + 1,
            peak_bytes=dict(self.ledger.peak),
            end_bytes=dict(self.ledger.held),
            bf16_peak_bytes=max(self._bf16_start_bytes, self.bf16_bytes),
            bf16_end_bytes=self.bf16_bytes,
            device_peak_bytes=device_peak_bytes,
            logit_rms=predicted_rms([layer.errors for layer in self.layers]),
        )


def open_cache(config: CacheConfig, geometry: Geometry, shape: CacheShape, seed: int) -> KVCache:
    unpacked = build_codec(unpacked_spec(config))
    return KVCache(
        CachePlan.of(config, tokens_per_frame=geometry.tokens_per_frame, sink_frames=shape.sink_frames),
        geometry,
        shape,
        packed=[
            CodecPair(build_codec(layer.k), build_codec(layer.v))
            for layer in config.of_layers(shape.num_layers)
        ],
        unpacked=CodecPair(unpacked, unpacked),
        seed=seed,
        workspace_bytes=config.workspace_mib * 2**20,
        arithmetic=config.arithmetic,
        shipped=read_shipped(config, shape),
    )
