"""Stored blocks as kernels read them: tables of addresses and tiles, made once for all steps of a chunk."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby

import torch
from torch import Tensor

from qvg_kernels.attention.history import StoredBlock
from qvg_kernels.codec import PackedTensor
from qvg_kernels.codecs.reading import BlockReader, BlockTable, HeadScales, Tiles, to_device
from qvg_kernels.codecs.spec import Spec
from qvg_kernels.rope.placement import Placement, form_of
from qvg_kernels.runtime import launch


@dataclass(frozen=True)
class Side:
    """Keys or values of neighbouring blocks."""

    reader: BlockReader
    table: BlockTable
    scales: HeadScales


@dataclass(frozen=True)
class Scales:
    """What the 8-bit numbers of some heads count; `None` where blocks are not packed.

    Attributes:
        key: `[B * h]`.
        smoothing: `[B * h, D]` smoothing factors of int8 keys.
        value: `[B * h]`.
    """

    key: Tensor | None = None
    smoothing: Tensor | None = None
    value: Tensor | None = None


@dataclass(frozen=True)
class BlockList:
    """Neighbouring blocks that the same kernels read.

    Attributes:
        blocks: Kept, since the tables hold their addresses.
        matrix: `[B, H, D, D]` bf16 that attention has to multiply what it makes of the values by; `None` if
            they are read as they are.
    """

    blocks: tuple[StoredBlock, ...]
    key: Side
    value: Side
    matrix: Tensor | None = None
    _scales: dict[tuple[int, int], Scales] = field(init=False, default_factory=dict)

    @property
    def is_coarse(self) -> bool:
        """Whether keys and values were rounded more coarsely than 8-bit numbers are."""
        return self.key.reader.is_coarse and self.value.reader.is_coarse

    @cached_property
    def extents(self) -> tuple[tuple[int, int], ...]:
        """First token and number of tokens that are read of each block."""
        return tuple((block.first_token, block.num_tokens) for block in self.blocks)

    @cached_property
    def num_tokens(self) -> int:
        """Keys of all blocks."""
        return sum(block.num_tokens for block in self.blocks)

    def passes(self, pass_tokens: int, device: torch.device) -> tuple[Tiles, ...]:
        """All keys, at most `pass_tokens` at a time."""
        return _tiles(self.extents, pass_tokens, launch.DECODE_TOKENS, device)

    def scales(self, first: int, stop: int) -> Scales:
        """Those of some heads, made once."""
        found = self._scales.get((first, stop))
        if found is None:
            every = self.key.scales.scale, self.key.scales.smoothing, self.value.scales.scale
            found = Scales(*(None if each is None else each[:, first:stop].flatten(0, 1) for each in every))
            # They may be copies; what is copied while a CUDA graph is captured is that graph's.
            if not (self.key.table.rows.is_cuda and torch.cuda.is_current_stream_capturing()):
                self._scales[first, stop] = found
        return found


def prepare(blocks: Sequence[StoredBlock]) -> tuple[BlockList, ...] | None:
    """Measure the blocks and make their tables, the one list with a matrix first.

    `None` where a scheme has no kernels.
    """
    groups = [tuple(group) for _, group in groupby(blocks, _likeness)]
    if not all(_has_kernels(group[0]) for group in groups):
        return None
    # The longest list of those whose values may be multiplied by their matrix after attention.
    sizes = [sum(block.num_tokens for block in group) if _folds(group[0]) else 0 for group in groups]
    if any(sizes):
        groups.insert(0, groups.pop(sizes.index(max(sizes))))
    return tuple(_list_of(group, folds=any(sizes) and place == 0) for place, group in enumerate(groups))


def _has_kernels(block: StoredBlock) -> bool:
    sides = (block.key_codec, block.key), (block.value_codec, block.value)
    # Unpacked values are read if they are bf16.
    return all(
        codec.reader(packed.shape[3]) is not None
        and ("values" not in packed.tensors or packed.tensors["values"].dtype == torch.bfloat16)
        for codec, packed in sides
    )


def _likeness(block: StoredBlock) -> tuple[Spec, Spec, int]:
    return block.key_codec.spec, block.value_codec.spec, id(block.value.matrix) if _folds(block) else 0


def _folds(block: StoredBlock) -> bool:
    if block.value.matrix is None or block.value_placement is not None:
        return False
    reader = block.value_codec.reader(block.value.shape[3])
    return reader is not None and reader.folds


def _list_of(blocks: tuple[StoredBlock, ...], *, folds: bool) -> BlockList:
    first = blocks[0]
    head_dim = first.key.shape[3]
    key_reader, value_reader = first.key_codec.reader(head_dim), first.value_codec.reader(head_dim)
    assert key_reader is not None
    assert value_reader is not None
    value_reader = value_reader.folded() if folds else value_reader
    return BlockList(
        blocks,
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
    forms = list(map(form_of, placements))
    rows = []
    for block in packed:
        count = block.tensors[reader.codebook].shape[-2] if reader.codebook else 0
        stored = block.tensors if block.matrix is None else {**block.tensors, "matrix": block.matrix}
        rows.append([block.shape[2], count, *(stored[name].data_ptr() for name in reader.tensors)])
    device = packed[0].tensors[reader.tensors[0]].device
    slots = _slots(tuple(form.slots for form in forms), device) if forms[0].kind else None
    batch, heads, _, _ = packed[0].shape
    table = BlockTable(to_device(torch.tensor(rows), device), batch, heads, forms[0], slots)
    return Side(reader, table, reader.measure(table, is_key=is_key))


@lru_cache(maxsize=64)
def _slots(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """`[N, frames]` int32; rows with fewer frames end in zeros."""
    width = max(len(row) for row in rows)
    padded = [[*row, *[0] * (width - len(row))] for row in rows]
    return to_device(torch.tensor(padded, dtype=torch.int32), device)


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
