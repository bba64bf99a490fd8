"""Queries in int8, each in a unit of its own."""

from __future__ import annotations

import triton
import triton.language as tl

from qvg_kernels.gpu.numbers import int8_of
from qvg_kernels.gpu.rehearsal import kernel


@triton.jit
def round_rows(rows):
    """Rows `[M, D]` as int8, and the float32 units `[M]` that bring their largest to 127."""
    wide = rows.to(tl.float32)
    unit = tl.maximum(tl.max(tl.abs(wide), 1), 1.0e-12) / 127.0
    return int8_of(wide / unit[:, None]), unit


@kernel()
def round_queries_kernel(
    query, rounded, units, query_batch, query_head, query_token, heads, num_queries, pitch,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Round one head's queries to `[B * h * pitch, D]`; those beyond the last become zeros."""
    head = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.arange(0, HEAD_DIM)
    is_query = rows < num_queries
    at = query + (head // heads).to(tl.int64) * query_batch + (head % heads).to(tl.int64) * query_head
    loaded = tl.load(at + rows[:, None] * query_token + channels[None, :], mask=is_query[:, None], other=0.0)
    values, unit = round_rows(loaded)
    at = (head.to(tl.int64) * pitch + rows)[:, None] * HEAD_DIM + channels[None, :]
    tl.store(rounded + at, values, mask=(rows < pitch)[:, None])
    tl.store(units + head.to(tl.int64) * num_queries + rows, unit, mask=is_query)
