"""Which blocks of keys and values the cache drops, stores and packs at each chunk. Integers only, no torch.

A fold over the chunks of a video, so it grows with an open session. The cache carries it out, the forecast
sums it and the checkpoint names its files by it: every layer holds the same blocks, and the bytes that a run
will hold are known in advance. Invariants: a chunk boundary never lies inside a packed block, sink frames
share a packed block with no others (a rolling window would keep it alive for ever), a block is packed once.
"""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

from qvg_cli.config.schema import CacheConfig
from qvg_cli.planning.chunks import ChunkPlan, Frames
from qvg_cli.planning.ledger import Ledger
from qvg_kernels.spec import Bf16Spec, NoneSpec

NUM_VERSIONS = 2
"""Versions of the matrices that shape errors: that of the first packed block, and that of all later ones."""


@dataclass(frozen=True)
class Block:
    """Keys and values of some frames that are stored together, in every layer.

    Attributes:
        frames: In the order of the tokens.
        is_packed: Whether the codecs of the preset hold it, and not those of chunks that wait.
        chunk: Index of the chunk that stored it; tells it from an older block of the same frames.
        version: Of the matrices that shape its errors, if it is packed and the codecs have such.
    """

    frames: Frames
    is_packed: bool
    chunk: int
    version: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Packing:
    """Waiting blocks that become one packed block."""

    members: tuple[Block, ...]
    block: Block


@dataclass(frozen=True)
class Commit:
    """What one pass leaves in every layer: blocks that it stores, then waiting ones that it packs."""

    stores: tuple[Block, ...]
    packings: tuple[Packing, ...] = ()

    @property
    def frames(self) -> Frames:
        return tuple(frame for block in self.stores for frame in block.frames)


@dataclass(frozen=True)
class CacheStep:
    """What one chunk does to the cache: what leaves before it, and what its two passes leave, if anything.

    Attributes:
        evicts: Frames that are not held any more when the chunk begins.
        drops: Blocks that go with them: none of their frames is left.
        empties: Whether no block is left then.
    """

    evicts: Frames
    drops: tuple[Block, ...]
    empties: bool
    prefill: Commit | None
    commit: Commit | None


@dataclass(eq=False)
class CachePlan:
    """The blocks of one video, chunk after chunk.

    Attributes:
        keep_recent_chunks: Newest finished chunks that stay unpacked.
        keep_sink: Whether the first committed block stays unpacked.
        block_frames: Chunks wait until together they have this many latent frames.
        sink_frames: Frames `0 .. sink_frames - 1` outlive a rolling window and are packed on their own.
        blocks: Those held after the last chunk, in the order in which they were stored.
        block_of: The block that a held frame is read from.
        num_packed: Blocks packed since the cache was last empty.
    """

    keep_recent_chunks: int = 0
    keep_sink: bool = False
    block_frames: int = 1
    sink_frames: int = 0
    blocks: list[Block] = field(default_factory=list, init=False)
    block_of: dict[int, Block] = field(default_factory=dict, init=False)
    num_packed: int = field(default=0, init=False)
    _waiting: list[Block] = field(default_factory=list, init=False)
    _is_first: bool = field(default=True, init=False)

    @classmethod
    def of(cls, config: CacheConfig, *, tokens_per_frame: int, sink_frames: int) -> Self:
        """The plan of a cache as configured, before the first chunk."""
        block_frames = math.ceil(config.span_tokens / tokens_per_frame)
        return cls(config.keep_recent_chunks, config.keep_sink, block_frames, sink_frames)

    def advance(self, chunk: ChunkPlan) -> CacheStep:
        evicts = tuple(frame for frame in chunk.evicts if self.block_of.pop(frame, None) is not None)
        alive = set(self.block_of.values())
        drops = tuple(block for block in self.blocks if block not in alive)
        self.blocks = [block for block in self.blocks if block in alive]
        self._waiting = [block for block in self._waiting if block in alive]
        empties = not self.blocks
        if empties:
            self.num_packed = 0
        prefill = self._commit(chunk.index, chunk.prefill_commits) if chunk.prefill_commits else None
        commit = self._commit(chunk.index, (chunk.commits,)) if chunk.commits else None
        return CacheStep(evicts, drops, empties, prefill, commit)

    def blocks_after(self, evicts: Collection[int]) -> tuple[Block, ...]:
        """Blocks that stay when the frames `evicts` leave."""
        alive = {block for frame, block in self.block_of.items() if frame not in evicts}
        return tuple(block for block in self.blocks if block in alive)

    def _commit(self, chunk: int, groups: tuple[Frames, ...]) -> Commit:
        stored = []
        for frames in groups:
            block = Block(frames, False, chunk)
            stored.append(block)
            if not (self._is_first and self.keep_sink):
                self._waiting.append(block)
            self._is_first = False
        packings = []
        for members in self._take_groups():
            frames = tuple(frame for member in members for frame in member.frames)
            packed = Block(frames, True, chunk, min(self.num_packed, NUM_VERSIONS - 1))
            self.num_packed += 1
            if members[0] in stored and len(members) == 1:
                # It is packed as it is stored.
                stored[stored.index(members[0])] = packed
            else:
                packings.append(Packing(members, packed))
        for block in stored:
            self._hold(block)
        for packing in packings:
            self.blocks = [block for block in self.blocks if block not in packing.members]
            self._hold(packing.block)
        return Commit(tuple(stored), tuple(packings))

    def _hold(self, block: Block) -> None:
        self.blocks.append(block)
        for frame in block.frames:
            self.block_of[frame] = block

    def _take_groups(self) -> list[tuple[Block, ...]]:
        """Remove the groups that are ready from the front of the waiting blocks, oldest first.

        A group waits for `block_frames` frames; a smaller one is packed early when it ends the sink.
        """
        waiting = self._waiting
        groups: list[tuple[Block, ...]] = []
        start = 0
        for stop in range(1, len(waiting) - self.keep_recent_chunks + 1):
            group = waiting[start:stop]
            ends_sink = (
                group[0].frames[0] < self.sink_frames
                and stop < len(waiting)
                and waiting[stop].frames[0] >= self.sink_frames
            )
            if sum(len(block.frames) for block in group) >= self.block_frames or ends_sink:
                groups.append(tuple(group))
                start = stop
        del waiting[:start]
        return groups


class Versions:
    """The versions of the matrices that a layer holds: of packed blocks, and the newest with its inverse."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._bytes: dict[int, int] = {}
        self._blocks: Counter[int] = Counter()

    def make(self, version: int, num_bytes: int) -> None:
        """Enter a version, unless it is held; codecs without matrices give 0 bytes."""
        if num_bytes and version not in self._bytes:
            # The inverse of the newest takes as much.
            self._ledger.add({"tables": num_bytes if self._bytes else 2 * num_bytes})
            self._bytes[version] = num_bytes
            self._settle()

    def hold(self, block: Block) -> None:
        """Count a block that is held from now on."""
        if block.is_packed:
            self._blocks[block.version] += 1

    def drop(self, block: Block) -> None:
        """Count a block that is not held any more."""
        if block.is_packed:
            self._blocks[block.version] -= 1
            self._settle()

    def clear(self) -> None:
        """Forget all: the cache is empty, and the next block is the first again."""
        for num_bytes in (*self._bytes.values(), *list(self._bytes.values())[:1]):
            self._ledger.remove({"tables": num_bytes})
        self._bytes.clear()
        self._blocks.clear()

    @property
    def held(self) -> frozenset[int]:
        return frozenset(self._bytes)

    def _settle(self) -> None:
        for version in [each for each in self._bytes if each != max(self._bytes) and not self._blocks[each]]:
            self._ledger.remove({"tables": self._bytes.pop(version)})


def unpacked_spec(config: CacheConfig) -> NoneSpec | Bf16Spec:
    """How chunks are kept that wait or stay unpacked: in bf16, unless nothing is rounded at all."""
    return NoneSpec() if config.k.scheme == config.v.scheme == "none" else Bf16Spec()
