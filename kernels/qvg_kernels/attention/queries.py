"""Queries in int8, each in a unit of its own, times what the keys' channels were divided by.

A rounded query errs alike for all keys, and the error of many keys' sum is soon that of the query alone. Two
versions, rounded up and down at different places, meet the blocks of keys in turn: their errors are nearly
opposite.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qvg_kernels.quant.numbers import int8_of
from qvg_kernels.runtime.warmup import GROUPED, kernel

VERSIONS = tl.constexpr(2)


@triton.jit
def in_units(rows, factors):
    """Rows `[M, D]` times factors `[D]` in float32 units `[M]` that bring their largest to 127."""
    wide = rows.to(tl.float32) * factors[None, :]
    unit = tl.maximum(tl.max(tl.abs(wide), 1), 1.0e-12) / 127.0
    return wide / unit[:, None], unit


@kernel(do_not_specialize=GROUPED)
def round_queries_kernel(
    query, factors, rounded, units, query_batch, query_head, query_token,
    heads, key_rows, num_queries, pitch, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Round one head's queries to `[VERSIONS * B * h * pitch, D]`; those beyond the last become zeros."""
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.arange(0, HEAD_DIM)
    is_query = rows < num_queries
    at = query + (head // heads).to(tl.int64) * query_batch + (head % heads).to(tl.int64) * query_head
    loaded = tl.load(at + rows[:, None] * query_token + channels[None, :], mask=is_query[:, None], other=0.0)
    # Keys of one item of the batch serve them all.
    scaled, unit = in_units(loaded, tl.load(factors + head % key_rows * HEAD_DIM + channels))
    tl.store(units + head.to(tl.int64) * num_queries + rows, unit, mask=is_query)
    quarter = tl.where(channels % 2 == 0, 0.25, -0.25)[None, :]
    for version in tl.static_range(VERSIONS):
        dithered = scaled + quarter if version == 0 else scaled - quarter
        at = ((version * num_heads + head).to(tl.int64) * pitch + rows)[:, None] * HEAD_DIM + channels[
            None, :
        ]
        tl.store(rounded + at, int8_of(dithered), mask=(rows < pitch)[:, None])
