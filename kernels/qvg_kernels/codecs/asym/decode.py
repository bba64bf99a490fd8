"""Blocks of the scheme "asym" read by kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import triton
import triton.language as tl

from qvg_kernels.codecs.asym.spec import AsymSpec
from qvg_kernels.codecs.reading import (
    CODEBOOK_ROWS,
    TOKENS,
    BlockTable,
    DecodeTarget,
    HeadScales,
    Tiles,
    address,
    group_scales,
    head_row_of,
    largest_of,
    launch_decode,
    launch_measure,
    store_placed,
    store_unit,
    tile_of,
    unpacked,
)  # fmt: skip
from qvg_kernels.quant import numbers
from qvg_kernels.rope.kernels import NONE
from qvg_kernels.runtime.warmup import GROUPED, SLICED, kernel


@kernel(do_not_specialize=GROUPED, do_not_specialize_on_alignment=SLICED)
def asym_decode_kernel(
    blocks, tiles, slots, slots_pitch, units, smoothing, target, pitch, tables, spaces,
    tokens_per_frame, total_heads, first_head, heads,
    BITS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, PLACEMENT: tl.constexpr,
    IS_8BIT: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_REORDERED: tl.constexpr,
    IS_ALIGNED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    block, row, source, target_row, count, fill = tile_of(blocks, tiles, BLOCK_COLUMNS, IS_ALIGNED)
    head, head_row = head_row_of(heads, total_heads, first_head)
    total = tl.load(row + TOKENS)
    slot = slots + block * slots_pitch if PLACEMENT != NONE else slots
    unit = tl.load(units + head) if IS_8BIT else 1.0
    channels = tl.arange(0, HEAD_DIM)
    PITCH: tl.constexpr = HEAD_DIM * BITS // 8
    codes = address(row, 0, tl.uint8, head_row * total * PITCH)
    steps = address(row, 1, tl.uint8, head_row * total * GROUPS)
    lows = address(row, 2, tl.uint8, head_row * total * GROUPS)
    ids = address(row, 3, tl.uint8, head_row * total)
    table = address(row, 4, tl.bfloat16, head_row * tl.load(row + CODEBOOK_ROWS) * HEAD_DIM)
    unit_row = address(row, 5, tl.float32, head_row * 2)
    step_unit, low_unit = tl.load(unit_row), tl.load(unit_row + 1)
    for start in tl.range(0, fill, BLOCK_S, num_stages=1):
        index = start + tl.arange(0, BLOCK_S)
        tokens = source + tl.where(index < count, index, 0)
        levels = numbers.float_of(unpacked(codes, tokens, BITS, PITCH, HEAD_DIM, BLOCK_S))
        step = group_scales(steps, tokens, GROUPS, HEAD_DIM, BLOCK_S) * step_unit
        values = group_scales(lows, tokens, GROUPS, HEAD_DIM, BLOCK_S) * low_unit + step * levels
        centroid = tl.load(ids + tokens).to(tl.int32)
        values += tl.load(table + centroid[:, None] * HEAD_DIM + channels[None, :]).to(tl.float32)
        store_placed(
            values, tokens, index, target_row, fill, slot, tables, spaces, tokens_per_frame, unit,
            target, pitch, head, PLACEMENT, False, IS_8BIT, IS_TRANSPOSED, IS_REORDERED, HEAD_DIM, BLOCK_S,
        )  # fmt: skip


@triton.jit
def _farthest(steps, lows, count, width, low_unit, BLOCK: tl.constexpr):
    """Largest magnitude of either end of `count` ranges: from a low, `width` steps on."""
    found = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        low = numbers.e4m3_value(tl.load(lows + at, mask=at < count, other=0)) * low_unit
        high = low + numbers.e4m3_value(tl.load(steps + at, mask=at < count, other=0)) * width
        found = tl.maximum(found, tl.maximum(tl.abs(low), tl.abs(high)))
    return tl.max(found, 0)


@kernel(do_not_specialize=["num_blocks"])
def asym_unit_kernel(
    blocks, num_blocks, gain, units, smoothing, BITS: tl.constexpr, GROUPS: tl.constexpr,
    IS_KEY: tl.constexpr, PLACEMENT: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    bound = 1.0e-20
    for block in range(num_blocks):
        row = blocks + block * BLOCK_COLUMNS
        groups = tl.load(row + TOKENS) * GROUPS
        steps, lows = address(row, 1, tl.uint8, head * groups), address(row, 2, tl.uint8, head * groups)
        unit_row = address(row, 5, tl.float32, head * 2)
        found = _farthest(steps, lows, groups, tl.load(unit_row) * (2**BITS - 1), tl.load(unit_row + 1), 1024)
        size = tl.load(row + CODEBOOK_ROWS) * HEAD_DIM
        found += largest_of(address(row, 4, tl.bfloat16, head * size), size, False, 1024)
        bound = tl.maximum(bound, found)
    store_unit(units, head, bound * gain, IS_KEY)
    if IS_KEY:
        tl.store(smoothing + head * HEAD_DIM + tl.arange(0, HEAD_DIM), tl.full([HEAD_DIM], 1.0, tl.float32))


@dataclass(frozen=True)
class AsymReader:
    """Reads heads of `head_dim` channels."""

    spec: AsymSpec
    head_dim: int
    codebook: ClassVar[str] = "centroids"
    tensors: ClassVar[tuple[str, ...]] = ("codes", "steps", "lows", "ids", "centroids", "units")

    @property
    def is_coarse(self) -> bool:
        return self.spec.bits == 2

    def decode(self, blocks: BlockTable, tiles: Tiles, target: DecodeTarget) -> None:
        launch_decode(
            asym_decode_kernel, self.head_dim, blocks, tiles, target,
            BITS=self.spec.bits, GROUPS=-(-self.head_dim // self.spec.block_size),
        )  # fmt: skip

    def measure(self, blocks: BlockTable, *, is_key: bool) -> HeadScales:
        return launch_measure(
            asym_unit_kernel, self.head_dim, blocks, is_key=is_key,
            BITS=self.spec.bits, GROUPS=-(-self.head_dim // self.spec.block_size),
        )  # fmt: skip
