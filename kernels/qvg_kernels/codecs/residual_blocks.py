"""Residuals in blocks of channels, as the schemes "qvg" and "asym" round them.

`qvg.QvgCodec._encode_head` and `asym.AsymCodec._encode_head` are the torch references. A residual is what a
token's centroid, rounded to bf16, leaves of it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.quant.numbers import e4m3_bits, e4m3_value, round_half_even
from qvg_kernels.quant.points import Points, load_tokens
from qvg_kernels.runtime import encode_sizes
from qvg_kernels.runtime.warmup import kernel


@triton.jit
def _residual(
    span, head_stride, token_stride, centroids, ids, count, num_tokens, tokens, is_token,
    HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """`[BLOCK_S, HEAD_DIM]` float32 of the program's head."""
    head = tl.program_id(1)
    values = load_tokens(span, head_stride, token_stride, tokens, is_token, HEAD_DIM).to(tl.float32)
    cluster = tl.load(ids + head.to(tl.int64) * num_tokens + tokens, mask=is_token, other=0).to(tl.int32)
    at = centroids + (head * count + cluster)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    return values - tl.load(at).to(tl.float32)


@triton.jit
def _store_codes(
    codes, levels, row, is_token, BITS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr
):
    """Store codes `[BLOCK_S, HEAD_DIM]`, float32 integers from 0, as `bitpack.pack` does."""
    EACH: tl.constexpr = 8 // BITS
    WIDTH: tl.constexpr = HEAD_DIM // EACH
    shifts = BITS * tl.arange(0, EACH)[None, None, :]
    packed = tl.sum(tl.reshape(levels.to(tl.int32), [BLOCK_S, WIDTH, EACH]) << shifts, 2)
    at = codes + row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(at, packed.to(tl.uint8), mask=is_token[:, None])


@kernel(do_not_specialize=["count", "num_tokens"])
def _subtract_kernel(
    span, head_stride, token_stride, centroids, ids, target, count, num_tokens,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Write residuals."""
    tokens = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    is_token = tokens < num_tokens
    residual = _residual(
        span, head_stride, token_stride, centroids, ids, count, num_tokens, tokens, is_token, HEAD_DIM
    )
    row = tl.program_id(1).to(tl.int64) * num_tokens + tokens
    at = target + row[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(at, residual, mask=is_token[:, None])


@kernel(do_not_specialize=["count", "num_tokens"])
def _symmetric_kernel(
    span, head_stride, token_stride, centroids, ids, scales, codes, count, num_tokens,
    BITS: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Round blocks of SIZE channels to levels that are symmetric about zero."""
    LARGEST: tl.constexpr = 2 ** (BITS - 1) - 1
    BLOCKS: tl.constexpr = HEAD_DIM // SIZE
    tokens = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    is_token = tokens < num_tokens
    residual = _residual(
        span, head_stride, token_stride, centroids, ids, count, num_tokens, tokens, is_token, HEAD_DIM
    )
    blocks = tl.reshape(residual, [BLOCK_S, BLOCKS, SIZE])
    bits = e4m3_bits(tl.max(tl.abs(blocks), 2) / LARGEST)
    row = tl.program_id(1).to(tl.int64) * num_tokens + tokens
    at = scales + row[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :]
    tl.store(at, bits, mask=is_token[:, None])
    # A block whose scale underflows to zero keeps only its centroids.
    step = e4m3_value(bits)[:, :, None]
    levels = tl.where(step > 0, blocks / tl.where(step > 0, step, 1.0), 0.0)
    levels = round_half_even(tl.clamp(levels, -LARGEST, LARGEST)) + LARGEST
    _store_codes(codes, tl.reshape(levels, [BLOCK_S, HEAD_DIM]), row, is_token, BITS, HEAD_DIM, BLOCK_S)


@kernel(do_not_specialize=["count", "num_tokens"])
def _extent_kernel(
    span, head_stride, token_stride, centroids, ids, lows, steps, largest_low, largest_step,
    count, num_tokens,
    BITS: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Lowest residual and exact step of blocks of SIZE channels, and the largest of each in this program."""
    BLOCKS: tl.constexpr = HEAD_DIM // SIZE
    tokens = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    is_token = tokens < num_tokens
    residual = _residual(
        span, head_stride, token_stride, centroids, ids, count, num_tokens, tokens, is_token, HEAD_DIM
    )
    blocks = tl.reshape(residual, [BLOCK_S, BLOCKS, SIZE])
    low = tl.min(blocks, 2)
    step = (tl.max(blocks, 2) - low) / (2**BITS - 1)
    head = tl.program_id(1)
    row = head.to(tl.int64) * num_tokens + tokens
    at = row[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :]
    tl.store(lows + at, low, mask=is_token[:, None])
    tl.store(steps + at, step, mask=is_token[:, None])
    part = head * tl.num_programs(0) + tl.program_id(0)
    tl.store(largest_low + part, tl.max(tl.max(tl.where(is_token[:, None], tl.abs(low), 0.0), 1), 0))
    tl.store(largest_step + part, tl.max(tl.max(tl.where(is_token[:, None], step, 0.0), 1), 0))


@kernel(do_not_specialize=["count", "num_tokens"])
def _asymmetric_kernel(
    span, head_stride, token_stride, centroids, ids, lows, steps, units, codes, count, num_tokens,
    BITS: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Round blocks of SIZE channels to levels from their stored low upwards, by their stored step."""
    BLOCKS: tl.constexpr = HEAD_DIM // SIZE
    tokens = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    is_token = tokens < num_tokens
    residual = _residual(
        span, head_stride, token_stride, centroids, ids, count, num_tokens, tokens, is_token, HEAD_DIM
    )
    head = tl.program_id(1)
    row = head.to(tl.int64) * num_tokens + tokens
    at = row[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :]
    step = e4m3_value(tl.load(steps + at, mask=is_token[:, None], other=0)) * tl.load(units + head * 2)
    low = e4m3_value(tl.load(lows + at, mask=is_token[:, None], other=0)) * tl.load(units + head * 2 + 1)
    blocks = tl.reshape(residual, [BLOCK_S, BLOCKS, SIZE]) - low[:, :, None]
    step = step[:, :, None]
    levels = tl.where(step > 0, blocks / tl.where(step > 0, step, 1.0), 0.0)
    levels = round_half_even(tl.clamp(levels, 0.0, 2**BITS - 1))
    _store_codes(codes, tl.reshape(levels, [BLOCK_S, HEAD_DIM]), row, is_token, BITS, HEAD_DIM, BLOCK_S)


def subtract(points: Points, centroids: Tensor, ids: Tensor) -> Points:
    """What centroids `[H, K, D]` bf16 leave of the points whose `[H, S]` ids name them, in float32."""
    target = points.empty(points.tokens, points.head_dim)
    block = encode_sizes.blocks(points.head_dim)
    _subtract_kernel[(triton.cdiv(points.tokens, block), points.heads)](
        points.span, *points.span.stride()[:2], centroids, ids, target, centroids.shape[1], points.tokens,
        points.head_dim, block, num_warps=4,
    )  # fmt: skip
    return Points(target)


def round_symmetric(
    points: Points, centroids: Tensor, ids: Tensor, bits: int, size: int, scales: Tensor, codes: Tensor
) -> None:
    """Round what the centroids leave by the largest magnitude of each block of `size` channels.

    Args:
        centroids: `[H, K, D]` bf16, contiguous.
        ids: `[H, S]` uint8, contiguous.
        scales: `[H, S, D // size]` uint8, contiguous; receives e4m3 bit patterns without a unit.
        codes: `[H, S, D * bits // 8]` uint8, contiguous; receives the codes.
    """
    block = encode_sizes.blocks(points.head_dim)
    _symmetric_kernel[(triton.cdiv(points.tokens, block), points.heads)](
        points.span, *points.span.stride()[:2], centroids, ids, scales, codes, centroids.shape[1],
        points.tokens, bits, size, points.head_dim, block, num_warps=4,
    )  # fmt: skip


def measure_blocks(
    points: Points, centroids: Tensor, ids: Tensor, bits: int, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lows and exact steps `[H, S * D // size]` float32, and the largest of each in parts, `[H, parts]`."""
    block = encode_sizes.blocks(points.head_dim)
    parts, width = triton.cdiv(points.tokens, block), points.tokens * (points.head_dim // size)
    lows, steps = points.empty(width), points.empty(width)
    largest_low, largest_step = points.empty(parts), points.empty(parts)
    _extent_kernel[(parts, points.heads)](
        points.span, *points.span.stride()[:2], centroids, ids, lows, steps, largest_low, largest_step,
        centroids.shape[1], points.tokens, bits, size, points.head_dim, block, num_warps=4,
    )  # fmt: skip
    return lows, steps, largest_low, largest_step


def round_asymmetric(
    points: Points, centroids: Tensor, ids: Tensor, bits: int, size: int,
    lows: Tensor, steps: Tensor, units: Tensor, codes: Tensor,
) -> None:  # fmt: skip
    """Round what the centroids leave by the stored lows and steps of blocks of `size` channels.

    Args:
        lows: `[H, S, D // size]` uint8, as stored; `steps` alike.
        units: `[H, 2]` float32: of the steps, of the lows.
        codes: `[H, S, D * bits // 8]` uint8, contiguous; receives the codes.
    """
    block = encode_sizes.blocks(points.head_dim)
    _asymmetric_kernel[(triton.cdiv(points.tokens, block), points.heads)](
        points.span, *points.span.stride()[:2], centroids, ids, lows, steps, units, codes,
        centroids.shape[1], points.tokens, bits, size, points.head_dim, block, num_warps=4,
    )  # fmt: skip
