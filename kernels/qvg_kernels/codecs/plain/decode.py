"""Blocks of plain bf16 numbers read by kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import triton.language as tl

from qvg_kernels.codecs.reading import (
    TOKENS,
    BlockTable,
    DecodeTarget,
    Tiles,
    address,
    head_row_of,
    launch_decode,
    store_placed,
    tile_of,
)  # fmt: skip
from qvg_kernels.rope.kernels import NONE
from qvg_kernels.runtime.warmup import GROUPED, SLICED, kernel


@kernel(do_not_specialize=GROUPED, do_not_specialize_on_alignment=SLICED)
def plain_decode_kernel(
    blocks, tiles, slots, slots_pitch, units, smoothing, target, pitch, tables, spaces,
    tokens_per_frame, total_heads, first_head, heads,
    BLOCK_COLUMNS: tl.constexpr, PLACEMENT: tl.constexpr,
    IS_8BIT: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_REORDERED: tl.constexpr,
    IS_ALIGNED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    block, row, source, target_row, count, fill = tile_of(blocks, tiles, BLOCK_COLUMNS, IS_ALIGNED)
    head, head_row = head_row_of(heads, total_heads, first_head)
    total = tl.load(row + TOKENS)
    slot = slots + block * slots_pitch if PLACEMENT != NONE else slots
    unit = tl.load(units + head) if IS_8BIT else 1.0
    channels = tl.arange(0, HEAD_DIM)
    values_at = address(row, 0, tl.bfloat16, head_row * total * HEAD_DIM)
    for start in tl.range(0, fill, BLOCK_S, num_stages=1):
        index = start + tl.arange(0, BLOCK_S)
        tokens = source + tl.where(index < count, index, 0)
        values = tl.load(values_at + tokens[:, None] * HEAD_DIM + channels[None, :]).to(tl.float32)
        store_placed(
            values, tokens, index, target_row, fill, slot, tables, spaces, tokens_per_frame, unit,
            target, pitch, head, PLACEMENT, False, IS_8BIT, IS_TRANSPOSED, IS_REORDERED, HEAD_DIM, BLOCK_S,
        )  # fmt: skip


@dataclass(frozen=True)
class PlainReader:
    """Reads heads of `head_dim` channels."""

    head_dim: int
    codebook: ClassVar[None] = None
    is_coarse: ClassVar[bool] = False
    tensors: ClassVar[tuple[str, ...]] = ("values",)

    def decode(self, blocks: BlockTable, tiles: Tiles, target: DecodeTarget) -> None:
        launch_decode(plain_decode_kernel, self.head_dim, blocks, tiles, target)

    def measure(self, blocks: BlockTable, *, is_key: bool) -> None:
        """Nothing: plain numbers stay bf16."""
