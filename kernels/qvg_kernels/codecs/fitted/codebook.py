"""The int8 table of a head's centroids, before the residuals are rounded and after.

`fitted.FittedCodec._encode_head` is the torch reference. What rounding leaves of each cluster on average
moves into its centroid, and what the table's own rounding then leaves of each channel into its offset.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.quant.kmeans_kernels import Centroids, ClusterSums, add_runs
from qvg_kernels.quant.numbers import e4m3_bits, e4m3_value, power_of_two, round_half_even, unit_exponent
from qvg_kernels.quant.points import Points
from qvg_kernels.runtime import encode_sizes
from qvg_kernels.runtime.warmup import kernel

TABLE_TOP = tl.constexpr(116)
"""`fitted.TABLE_TOP`."""

TINY = tl.constexpr(1e-30)
"""`fitted.TINY`."""


@triton.jit
def in_steps(values, step):
    """Float32 integers: values in steps, to nearest even, at most 127 either way."""
    return tl.clamp(round_half_even(tl.clamp(values / tl.maximum(step, TINY), -128.0, 128.0)), -127.0, 127.0)


@triton.jit
def table_steps(steps, units, head, HEAD_DIM: tl.constexpr):
    """`[HEAD_DIM]` float32 steps of a head's table."""
    bits = tl.load(steps + head * HEAD_DIM + tl.arange(0, HEAD_DIM))
    return e4m3_value(bits) * tl.load(units + head * 3 + 2)


@kernel(do_not_specialize=["count"])
def _table_kernel(
    centroids, table, steps, units, decoded, count, num_rows, HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """One head's steps and its table of rounded centroids."""
    head = tl.program_id(1)
    channels = tl.arange(0, HEAD_DIM)
    largest = tl.zeros([HEAD_DIM], tl.float32)
    for first in range(0, num_rows, BLOCK_K):
        rows = first + tl.arange(0, BLOCK_K)
        values = tl.load(centroids + (head * num_rows + rows)[:, None] * HEAD_DIM + channels[None, :])
        largest = tl.maximum(largest, tl.max(tl.abs(values), 0))
    step = largest / TABLE_TOP
    exponent = unit_exponent(tl.max(step, 0))
    bits = e4m3_bits(step * power_of_two(-exponent))
    step = e4m3_value(bits) * power_of_two(exponent)
    tl.store(steps + head * HEAD_DIM + channels, bits)
    tl.store(units + head * 3 + 2, power_of_two(exponent))
    tl.store(decoded + head * HEAD_DIM + channels, step)
    for first in range(0, num_rows, BLOCK_K):
        rows = first + tl.arange(0, BLOCK_K)
        values = tl.load(centroids + (head * num_rows + rows)[:, None] * HEAD_DIM + channels[None, :])
        at = (head * count + rows)[:, None] * HEAD_DIM + channels[None, :]
        tl.store(table + at, in_steps(values, step[None, :]).to(tl.int8), mask=(rows < count)[:, None])


@kernel(do_not_specialize=["count", "runs"])
def _refit_kernel(
    sums, sizes, table, steps, units, rests, count, runs, num_rows,
    HEAD_DIM: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Move BLOCK_K entries of the table by the mean error of their tokens; what is left goes to `rests`."""
    head = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    channels = tl.arange(0, HEAD_DIM)
    rest, size = add_runs(sums, sizes, rows, runs, num_rows, HEAD_DIM, BLOCK_K)
    if table is not None:
        step = table_steps(steps, units, head, HEAD_DIM)[None, :]
        at = (head * count + rows)[:, None] * HEAD_DIM + channels[None, :]
        is_entry = (rows < count)[:, None]
        before = tl.load(table + at, mask=is_entry, other=0).to(tl.float32)
        after = in_steps(step * before + rest / tl.maximum(size, 1.0)[:, None], step)
        after = tl.where((size > 0)[:, None], after, before)
        tl.store(table + at, after.to(tl.int8), mask=is_entry)
        rest += size[:, None] * (step * (before - after))
    tl.store(rests + (head * tl.num_programs(0) + tl.program_id(0)) * HEAD_DIM + channels, tl.sum(rest, 0))


@kernel(do_not_specialize=["num_blocks", "num_tokens"])
def _offset_kernel(
    rests, means, weights, units, offset, num_blocks, num_tokens, HEAD_DIM: tl.constexpr
):  # fmt: skip
    """A head's means, moved by the mean error of each channel."""
    head = tl.program_id(1)
    channels = tl.arange(0, HEAD_DIM)
    rest = tl.zeros([HEAD_DIM], tl.float32)
    for block in range(num_blocks):
        rest += tl.load(rests + (head * num_blocks + block) * HEAD_DIM + channels)
    at = head * HEAD_DIM + channels
    weight = e4m3_value(tl.load(weights + at)) * tl.load(units + head * 3 + 1)
    tl.store(offset + at, tl.load(means + at) + weight * (rest / num_tokens))


def round_table(centroids: Centroids, table: Tensor, steps: Tensor, units: Tensor) -> Tensor:
    """Round centroids to the table.

    Args:
        table: `[H, K, D]` int8, contiguous; receives the centroids in steps.
        steps: `[H, D]` uint8, contiguous; receives e4m3 bit patterns.
        units: `[H, 3]` float32, contiguous; its third column receives the unit of the steps.

    Returns:
        `[H, D]` float32, the steps as they are decoded.
    """
    heads, num_rows, head_dim = centroids.values.shape
    decoded = torch.empty(heads, head_dim, dtype=torch.float32, device=table.device)
    _table_kernel[(1, heads)](
        centroids.values, table, steps, units, decoded, centroids.count, num_rows,
        head_dim, min(num_rows, 64), num_warps=8,
    )  # fmt: skip
    return decoded


def refit(
    points: Points, errors: ClusterSums, table: Tensor | None, steps: Tensor | None,
    weights: Tensor, units: Tensor, offset: Tensor,
) -> None:  # fmt: skip
    """Move the table's entries and the offset so that tokens err by zero on average.

    Args:
        points: Whose offset is moved.
        errors: Of each cluster's points minus what they decode to; of all tokens in cluster 0 without table.
        table: `[H, K, D]` int8, changed in place.
        offset: `[H, D]` float32, contiguous; receives the moved offset.
    """
    heads, runs, num_rows, head_dim = errors.sums.shape
    block = encode_sizes.MEAN_ROWS
    blocks = num_rows // block
    rests = points.empty(blocks, head_dim)
    count = 0 if table is None else table.shape[1]
    _refit_kernel[(blocks, heads)](
        errors.sums, errors.sizes, table, steps, units, rests, count, runs, num_rows,
        head_dim, block, num_warps=4,
    )  # fmt: skip
    _offset_kernel[(1, heads)](
        rests, points.offset, weights, units, offset, blocks, points.tokens, head_dim, num_warps=4
    )
