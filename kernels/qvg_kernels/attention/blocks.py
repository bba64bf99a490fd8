"""Stored segments as kernels read them: tables of addresses and tiles, made once for all steps of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qvg_kernels.attention.history import StoredSegment
from qvg_kernels.attention.tiling import PART_ALIGNMENT, round_up
from qvg_kernels.codec import PackedTensor
from qvg_kernels.codecs.fitted.grids import ScalarGrid, grid
from qvg_kernels.codecs.layouts import Layout, layout_of
from qvg_kernels.quant import numbers
from qvg_kernels.rope.kernels import KernelPlacement, by_fours
from qvg_kernels.rope.placement import Placement
from qvg_kernels.runtime import launch


@dataclass(frozen=True)
class Side:
    """Keys or values of a run.

    Attributes:
        entries: `[E, columns]` int64: tokens, centroids and addresses of each entry.
        slots: `[E, frames]` int32: row of the placement's table for each frame.
        head_units: `[B, H]` float32 units of 8-bit numbers; none for spans that are not packed.
        factors: `[B, H, D]` float32 that int8 keys are divided by beside their unit, and queries multiplied.
        tables: The constant tables that the layout's kernel reads.
    """

    layout: Layout
    entries: Tensor
    placement: KernelPlacement
    slots: Tensor | None
    head_units: Tensor | None
    factors: Tensor | None
    tables: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Tiles:
    """A part of a run, cut into tiles of one entry each.

    Attributes:
        table: `[T, 5]` int32, see `decode`.
        num_tokens: Keys of the part.
        is_aligned: Whether every tile begins and ends at a multiple of 8 keys.
    """

    table: Tensor
    num_tokens: int
    is_aligned: bool


@dataclass(frozen=True)
class Run:
    """Neighbouring segments that the same kernels read.

    Attributes:
        segments: Kept, since the tables hold their addresses.
        extents: First token and number of tokens of each segment in its span.
    """

    segments: tuple[StoredSegment, ...]
    extents: tuple[tuple[int, int], ...]
    key: Side
    value: Side
    is_packed: bool

    @property
    def batch(self) -> int:
        """Items of the batch that the spans hold."""
        return self.segments[0].key.shape[0]

    @property
    def num_tokens(self) -> int:
        """Keys of all segments."""
        return sum(count for _, count in self.extents)

    def parts(self, part_tokens: int, device: torch.device) -> tuple[Tiles, ...]:
        """The run in parts of at most `part_tokens` keys."""
        return _tiles(self.extents, part_tokens, launch.STRETCH_TOKENS, device)


def runs_of(segments: Sequence[StoredSegment]) -> list[Run] | None:
    """Runs of neighbouring segments; none if a scheme has no kernels."""
    groups: list[list[StoredSegment]] = []
    for segment in segments:
        if groups and _alike(groups[-1][-1], segment):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    runs = []
    for group in groups:
        run = _run(tuple(group))
        if run is None:
            return None
        runs.append(run)
    return runs


def _alike(one: StoredSegment, other: StoredSegment) -> bool:
    specs = [(segment.key_codec.spec, segment.value_codec.spec) for segment in (one, other)]
    return specs[0] == specs[1]


def _run(segments: tuple[StoredSegment, ...]) -> Run | None:
    first = segments[0]
    head_dim = first.key.shape[3]
    key_layout = layout_of(first.key_codec.spec, head_dim)
    value_layout = layout_of(first.value_codec.spec, head_dim)
    if key_layout is None or value_layout is None or not _is_readable(first.key, first.value):
        return None
    is_packed = key_layout.is_packed and value_layout.is_packed
    return Run(
        segments,
        tuple((segment.first_token, segment.num_tokens) for segment in segments),
        _side(key_layout, [s.key for s in segments], [s.key_placement for s in segments], is_key=True),
        _side(value_layout, [s.value for s in segments], [s.value_placement for s in segments], is_key=False),
        is_packed,
    )


def _is_readable(*spans: PackedTensor) -> bool:
    """Whether unpacked values, if these are any, are bf16."""
    return all(span.tensors.get("values", _BF16).dtype == torch.bfloat16 for span in spans)


_BF16 = torch.empty(0, dtype=torch.bfloat16)


def _side(
    layout: Layout,
    packed: list[PackedTensor],
    placements: Sequence[Placement | None],
    *,
    is_key: bool,
) -> Side:
    rows = []
    for span in packed:
        count = span.tensors[layout.table].shape[-2] if layout.table else 0
        rows.append([span.shape[2], count, *(span.tensors[name].data_ptr() for name in layout.names)])
    device = packed[0].tensors[layout.names[0]].device
    entries = _to_device(torch.tensor(rows), device)
    placement = KernelPlacement.of(placements[0])
    slots = None
    if placements[0] is not None:
        slots = _slots(tuple(placement.slots for placement in placements if placement), device)
    head_dim = packed[0].shape[3]
    head_units = factors = None
    if layout.unit_kernel is not None:
        batch, heads = packed[0].shape[:2]
        head_units = torch.empty(batch, heads, device=device)
        factors = torch.empty(batch, heads, head_dim, device=device) if is_key else None
        layout.unit_kernel[(batch * heads,)](
            entries, len(rows), placement.gain, head_units, factors,
            **layout.unit_constants, IS_KEY=is_key, PLACEMENT=placement.kind,
            ENTRY_COLUMNS=layout.columns, HEAD_DIM=head_dim, num_warps=4,
        )  # fmt: skip
    return Side(layout, entries, placement, slots, head_units, factors, _tables(layout, head_dim, device))


@lru_cache(maxsize=64)
def _slots(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """`[E, frames]` int32; rows with fewer frames end in zeros."""
    width = max(len(row) for row in rows)
    padded = [[*row, *[0] * (width - len(row))] for row in rows]
    return _to_device(torch.tensor(padded, dtype=torch.int32), device)


@lru_cache(maxsize=64)
def _tiles(
    extents: tuple[tuple[int, int], ...], part_tokens: int, block: int, device: torch.device
) -> tuple[Tiles, ...]:
    """Parts of at most `part_tokens` keys, each padded to a multiple of 128."""
    total = sum(count for _, count in extents)
    parts: list[list[list[int]]] = [[] for _ in range(-(-total // part_tokens))]
    at = 0
    for entry, (first, count) in enumerate(extents):
        done = 0
        while done < count:
            target = at % part_tokens
            size = min(block, count - done, part_tokens - target)
            parts[at // part_tokens].append([entry, first + done, target, size, size])
            at, done = at + size, done + size
    found = []
    for index, tiles in enumerate(parts):
        num_tokens = min(part_tokens, total - index * part_tokens)
        for start in range(num_tokens, round_up(num_tokens, PART_ALIGNMENT), block):
            fill = min(block, round_up(num_tokens, PART_ALIGNMENT) - start)
            tiles.append([tiles[0][0], tiles[0][1], start, 0, fill])
        is_aligned = all(row[2] % 8 == 0 and row[4] % 8 == 0 for row in tiles)
        table = _to_device(torch.tensor(tiles, dtype=torch.int32), device)
        found.append(Tiles(table, num_tokens, is_aligned))
    return tuple(found)


def _to_device(table: Tensor, device: torch.device) -> Tensor:
    """A copy that does not wait for the device's queue."""
    if device.type != "cuda":
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)


def decode_part(
    side: Side,
    tiles: Tiles,
    heads: tuple[int, int, int, int],
    head_dim: int,
    target: Tensor,
    head_units: Tensor | None,
    factors: Tensor | None,
    pitch: int,
    *,
    transposes: bool = False,
    reorders: bool = False,
) -> None:
    """Decode some heads of a part, and more keys up to a multiple of 128.

    Args:
        heads: Items of the batch, heads of the span, the first to decode, how many.
        target: `[B * h * pitch, D]`, or `[B * h * D, pitch]` if the kernel `transposes`.
        reorders: Whether keys lie at `attend.stored_row`.
        head_units: `[B * h]` units of 8-bit numbers.
        factors: `[B * h, D]` of int8 keys.
    """
    if _decodes_lattice(side.layout, head_dim, target.device) and not transposes and not reorders:
        _decode_lattice(side, tiles, heads, target, head_units, factors, pitch)
        return
    batch, total_heads, first_head, group_heads = heads
    blocks = launch.DECODE_TRANSPOSED if transposes else launch.DECODE
    placement = side.placement
    side.layout.kernel[(len(tiles.table), batch * group_heads)](
        side.entries, tiles.table, side.slots, 0 if side.slots is None else side.slots.shape[1],
        head_units, factors, target, pitch, *side.tables,
        placement.tables, placement.spaces, placement.tokens_per_frame,
        total_heads, first_head, group_heads,
        **side.layout.constants, ENTRY_COLUMNS=side.layout.columns, PLACEMENT=placement.kind,
        IS_8BIT=target.element_size() == 1, IS_TRANSPOSED=transposes, IS_REORDERED=reorders,
        IS_ALIGNED=tiles.is_aligned,
        HEAD_DIM=head_dim, BLOCK_S=blocks.tokens, num_warps=blocks.warps,
    )  # fmt: skip


def _decodes_lattice(layout: Layout, head_dim: int, device: torch.device) -> bool:
    """Whether `decode_lattice` reads spans of this layout."""
    return layout.constants.get("GRID") == "e8" and head_dim == 128 and launch.has_gluon(device)


def _decode_lattice(
    side: Side,
    tiles: Tiles,
    heads: tuple[int, int, int, int],
    target: Tensor,
    head_units: Tensor | None,
    factors: Tensor | None,
    pitch: int,
) -> None:
    from qvg_kernels.codecs.fitted.decode_hopper import decode_lattice_kernel

    batch, total_heads, first_head, group_heads = heads
    placement, device = side.placement, target.device
    tables, spaces = placement.tables, placement.spaces
    if tables is not None and spaces is not None:
        tables, spaces = by_fours(tables), by_fours(spaces)
    decode_lattice_kernel[(len(tiles.table), batch * group_heads)](
        side.entries, tiles.table, side.slots, 0 if side.slots is None else side.slots.shape[1],
        head_units, factors, target, pitch, numbers.pattern_words(device), numbers.sign_flips(128, device),
        tables, spaces, placement.tokens_per_frame,
        total_heads, first_head, group_heads,
        HAS_TABLE=side.layout.constants["HAS_TABLE"], ENTRY_COLUMNS=side.layout.columns,
        PLACEMENT=placement.kind, num_warps=1, maxnreg=launch.LATTICE_REGISTERS,
    )  # fmt: skip


def _tables(layout: Layout, head_dim: int, device: torch.device) -> tuple[Tensor | None, ...]:
    """The constant tables that a kernel reads."""
    if "GRID" not in layout.constants:
        return ()
    return (
        _level_words(layout.constants["GRID"], device),
        numbers.sign_flips(head_dim, device),
    )


def _level_words(name: Any, device: torch.device) -> Tensor | None:
    """What the kernel looks codes up in: a lattice's sums, or the levels of a grid."""
    levels = grid(name)
    if isinstance(levels, ScalarGrid):
        return _levels(levels.levels, device)
    return numbers.lattice_sums(device)


@lru_cache(maxsize=8)
def _levels(levels: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(levels, dtype=torch.int32, device=device)
