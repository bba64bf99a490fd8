"""Stored blocks as kernels read them: tables of addresses and tiles, made once for all steps of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qvg_kernels.attention.history import StoredBlock
from qvg_kernels.codec import PackedTensor
from qvg_kernels.codecs.reading import (
    BlockReader,
    BlockTable,
    HeadScales,
    Tiles,
    table_of,
    to_device,
)
from qvg_kernels.codecs.spec import Spec
from qvg_kernels.rope.placement import Placement
from qvg_kernels.rope.tables import UNPLACED
from qvg_kernels.runtime import launch


@dataclass(frozen=True)
class Side:
    """Keys or values of neighbouring blocks.

    Attributes:
        scales: Of numbers of 8 bits; `None` for blocks that are never read so.
    """

    reader: BlockReader
    table: BlockTable
    scales: HeadScales | None


@dataclass(frozen=True)
class BlockList:
    """Neighbouring blocks that the same kernels read.

    Attributes:
        blocks: Kept, since the tables hold their addresses.
        extents: First token and number of tokens that are read of each block.
        matrix: `[B, H, D, D]` bf16 that attention has to multiply what it makes of the values by; `None` if
            they are read as they are.
    """

    blocks: tuple[StoredBlock, ...]
    extents: tuple[tuple[int, int], ...]
    key: Side
    value: Side
    matrix: Tensor | None = None

    @property
    def is_coarse(self) -> bool:
        """Whether keys and values were rounded more coarsely than 8-bit numbers are."""
        return self.key.reader.is_coarse and self.value.reader.is_coarse

    @property
    def num_tokens(self) -> int:
        """Keys of all blocks."""
        return sum(count for _, count in self.extents)

    def passes(self, pass_tokens: int, device: torch.device) -> tuple[Tiles, ...]:
        """All keys, at most `pass_tokens` at a time."""
        return _tiles(self.extents, pass_tokens, launch.DECODE_TOKENS, device)


@dataclass(frozen=True)
class PreparedHistory:
    """What kernels know of a history.

    Attributes:
        lists: `None` where a scheme has no kernels. At most the first has a matrix.
    """

    lists: tuple[BlockList, ...] | None


def prepare(blocks: Sequence[StoredBlock]) -> PreparedHistory:
    """Measure the blocks and make their tables."""
    groups: list[list[StoredBlock]] = []
    for block in blocks:
        if groups and _likeness(groups[-1][-1]) == _likeness(block):
            groups[-1].append(block)
        else:
            groups.append([block])
    # The longest list of those whose values may be multiplied by their matrix after attention.
    sizes = [sum(block.num_tokens for block in group) if _folds(group[0]) else 0 for group in groups]
    if any(sizes):
        groups.insert(0, groups.pop(sizes.index(max(sizes))))
    lists = [_list_of(tuple(group), folds=any(sizes) and place == 0) for place, group in enumerate(groups)]
    found = tuple(each for each in lists if each is not None)
    return PreparedHistory(found if len(found) == len(lists) else None)


def _likeness(block: StoredBlock) -> tuple[Spec, Spec, int]:
    return block.key_codec.spec, block.value_codec.spec, id(block.value.matrix) if _folds(block) else 0


def _folds(block: StoredBlock) -> bool:
    reader = block.value_codec.reader(block.value.shape[3])
    return reader is not None and reader.folds and block.value_placement is None


def _list_of(blocks: tuple[StoredBlock, ...], *, folds: bool) -> BlockList | None:
    first = blocks[0]
    head_dim = first.key.shape[3]
    key_reader, value_reader = first.key_codec.reader(head_dim), first.value_codec.reader(head_dim)
    # Unpacked values are read if they are bf16.
    plain = [side.tensors["values"].dtype for side in (first.key, first.value) if "values" in side.tensors]
    if key_reader is None or value_reader is None or any(dtype != torch.bfloat16 for dtype in plain):
        return None
    value_reader = value_reader.folded() if folds else value_reader
    return BlockList(
        blocks,
        tuple((block.first_token, block.num_tokens) for block in blocks),
        _side(key_reader, [b.key for b in blocks], [b.key_placement for b in blocks], is_key=True),
        _side(value_reader, [b.value for b in blocks], [b.value_placement for b in blocks], is_key=False),
        first.value.matrix if folds else None,
    )


def _side(
    reader: BlockReader,
    packed: Sequence[PackedTensor],
    placements: Sequence[Placement | None],
    *,
    is_key: bool,
) -> Side:
    forms = [UNPLACED if placement is None else placement.for_kernels() for placement in placements]
    table = table_of(reader, packed, forms)
    return Side(reader, table, reader.measure(table, is_key=is_key))


@lru_cache(maxsize=64)
def _tiles(
    extents: tuple[tuple[int, int], ...], pass_tokens: int, tile_tokens: int, device: torch.device
) -> tuple[Tiles, ...]:
    """Passes of at most `pass_tokens` keys, each padded to a multiple of 128."""
    total = sum(count for _, count in extents)
    passes: list[list[list[int]]] = [[] for _ in range(-(-total // pass_tokens))]
    at = 0
    for block, (first, count) in enumerate(extents):
        done = 0
        while done < count:
            target = at % pass_tokens
            size = min(tile_tokens, count - done, pass_tokens - target)
            passes[at // pass_tokens].append([block, first + done, target, size, size])
            at, done = at + size, done + size
    found = []
    for index, rows in enumerate(passes):
        num_tokens = min(pass_tokens, total - index * pass_tokens)
        padded = launch.round_up(num_tokens, launch.KEY_ALIGNMENT)
        for start in range(num_tokens, padded, tile_tokens):
            rows.append([rows[0][0], rows[0][1], start, 0, min(tile_tokens, padded - start)])
        is_aligned = all(row[2] % 8 == 0 and row[4] % 8 == 0 for row in rows)
        table = to_device(torch.tensor(rows, dtype=torch.int32), device)
        found.append(Tiles(table, num_tokens, is_aligned))
    return tuple(found)
