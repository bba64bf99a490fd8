"""Blocks of the scheme "qvg" read by kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import triton.language as tl

from qvg_kernels.codecs.qvg.spec import QvgSpec
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
def qvg_decode_kernel(
    blocks, tiles, slots, slots_pitch, units, smoothing, target, pitch, tables, spaces,
    tokens_per_frame, total_heads, first_head, heads,
    BITS: tl.constexpr, STAGES: tl.constexpr, GROUPS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    PLACEMENT: tl.constexpr, IS_8BIT: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_REORDERED: tl.constexpr,
    IS_ALIGNED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    block, row, source, target_row, count, fill = tile_of(blocks, tiles, BLOCK_COLUMNS, IS_ALIGNED)
    head, head_row = head_row_of(heads, total_heads, first_head)
    total = tl.load(row + TOKENS)
    slot = slots + block * slots_pitch if PLACEMENT != NONE else slots
    unit = tl.load(units + head) if IS_8BIT else 1.0
    channels = tl.arange(0, HEAD_DIM)
    PITCH: tl.constexpr = HEAD_DIM * BITS // 8
    LARGEST: tl.constexpr = 2 ** (BITS - 1) - 1
    codes = address(row, 0, tl.uint8, head_row * total * PITCH)
    scales = address(row, 1, tl.uint8, head_row * total * GROUPS)
    table_rows = tl.load(row + CODEBOOK_ROWS)
    for start in tl.range(0, fill, BLOCK_S, num_stages=1):
        index = start + tl.arange(0, BLOCK_S)
        tokens = source + tl.where(index < count, index, 0)
        values = numbers.float_of(unpacked(codes, tokens, BITS, PITCH, HEAD_DIM, BLOCK_S) - LARGEST)
        values *= group_scales(scales, tokens, GROUPS, HEAD_DIM, BLOCK_S)
        for stage in tl.static_range(STAGES):
            stage_row = head_row * STAGES + stage
            ids = tl.load(address(row, 2, tl.uint8, stage_row * total) + tokens).to(tl.int32)
            table = address(row, 3, tl.bfloat16, stage_row * table_rows * HEAD_DIM)
            values += tl.load(table + ids[:, None] * HEAD_DIM + channels[None, :]).to(tl.float32)
        store_placed(
            values, tokens, index, target_row, fill, slot, tables, spaces, tokens_per_frame, unit,
            target, pitch, head, PLACEMENT, False, IS_8BIT, IS_TRANSPOSED, IS_REORDERED, HEAD_DIM, BLOCK_S,
        )  # fmt: skip


@kernel(do_not_specialize=["num_blocks"])
def qvg_unit_kernel(
    blocks, num_blocks, gain, units, smoothing,
    BITS: tl.constexpr, STAGES: tl.constexpr, GROUPS: tl.constexpr, IS_KEY: tl.constexpr,
    PLACEMENT: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    bound = 1.0e-20
    for block in range(num_blocks):
        row = blocks + block * BLOCK_COLUMNS
        scales = tl.load(row + TOKENS) * GROUPS
        found = largest_of(address(row, 1, tl.uint8, head * scales), scales, True, 1024) * (
            2 ** (BITS - 1) - 1
        )
        size = tl.load(row + CODEBOOK_ROWS) * HEAD_DIM
        for stage in range(STAGES):
            table = address(row, 3, tl.bfloat16, (head * STAGES + stage) * size)
            found += largest_of(table, size, False, 1024)
        bound = tl.maximum(bound, found)
    store_unit(units, head, bound * gain, IS_KEY)
    if IS_KEY:
        tl.store(smoothing + head * HEAD_DIM + tl.arange(0, HEAD_DIM), tl.full([HEAD_DIM], 1.0, tl.float32))


@dataclass(frozen=True)
class QvgReader:
    """Reads heads of `head_dim` channels."""

    spec: QvgSpec
    head_dim: int
    codebook: ClassVar[str] = "centroids"
    tensors: ClassVar[tuple[str, ...]] = ("codes", "scales", "ids", "centroids")

    @property
    def is_coarse(self) -> bool:
        return self.spec.bits == 2

    def decode(self, blocks: BlockTable, tiles: Tiles, target: DecodeTarget) -> None:
        launch_decode(
            qvg_decode_kernel, self.head_dim, blocks, tiles, target,
            BITS=self.spec.bits, STAGES=self.spec.stages, GROUPS=-(-self.head_dim // self.spec.block_size),
        )  # fmt: skip

    def measure(self, blocks: BlockTable, *, is_key: bool) -> HeadScales:
        return launch_measure(
            qvg_unit_kernel, self.head_dim, blocks, is_key=is_key,
            BITS=self.spec.bits, STAGES=self.spec.stages, GROUPS=-(-self.head_dim // self.spec.block_size),
        )  # fmt: skip
