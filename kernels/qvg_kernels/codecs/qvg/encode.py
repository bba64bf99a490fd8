"""Blocks of the scheme "qvg" packed by kernels: `QvgCodec.encode_head` is the torch reference.

A residual is what a token's centroid, rounded to bf16, leaves of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.codecs.encoding import Packed, cluster, draw_starts, encode_heads, residual_of, store_codes
from qvg_kernels.codecs.qvg.spec import QvgSpec
from qvg_kernels.quant.numbers import e4m3_bits, e4m3_value, round_half_even
from qvg_kernels.quant.points import Points, measure
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import kernel


def encode(block: Tensor, spec: QvgSpec, seed: int) -> Packed:
    """Pack `[B, H, S, D]` values."""
    _, _, tokens, head_dim = block.shape
    count, size = min(spec.num_centroids, tokens), min(spec.block_size, head_dim)
    tile = launch.groups(head_dim).rows
    starts = draw_starts(tokens, count, spec.stages, seed, block.device)

    def fill(points: Points, target: dict[str, Tensor], found: Tensor) -> None:
        grid = (triton.cdiv(tokens, tile), points.heads)
        measure(points, found)
        for stage in range(spec.stages):
            ids, rounded = cluster(points, starts[stage], spec.iterations)
            target["ids"][:, stage] = ids
            target["centroids"][:, stage] = rounded
            if stage + 1 < spec.stages:
                left = points.empty(tokens, head_dim)
                _subtract_kernel[grid](
                    points.block, *points.strides, rounded, ids, left, count, tokens, head_dim, tile,
                    num_warps=4,
                )  # fmt: skip
                points = Points(left)
        _symmetric_kernel[grid](
            points.block, *points.strides, rounded, ids, target["scales"], target["codes"],
            count, tokens, spec.bits, size, head_dim, tile, num_warps=4,
        )  # fmt: skip

    shapes = {
        "codes": (torch.uint8, (tokens, head_dim * spec.bits // 8)),
        "scales": (torch.uint8, (tokens, head_dim // size)),
        "ids": (torch.uint8, (spec.stages, tokens)),
        "centroids": (torch.bfloat16, (spec.stages, count, head_dim)),
    }
    return encode_heads(block, spec, shapes, fill)


@kernel(do_not_specialize=["count", "num_tokens"])
def _subtract_kernel(
    block, head_stride, token_stride, centroids, ids, target, count, num_tokens,
    HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    """Write residuals."""
    residual, tokens, is_token = residual_of(
        block, head_stride, token_stride, centroids, ids, count, num_tokens, HEAD_DIM, TILE_S
    )
    row = tl.program_id(1).to(tl.int64) * num_tokens + tokens
    at = target + row[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    tl.store(at, residual, mask=is_token[:, None])


@kernel(do_not_specialize=["count", "num_tokens"])
def _symmetric_kernel(
    block, head_stride, token_stride, centroids, ids, scales, codes, count, num_tokens,
    BITS: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    """Round groups of SIZE channels to levels that are symmetric about zero."""
    LARGEST: tl.constexpr = 2 ** (BITS - 1) - 1
    GROUPS: tl.constexpr = HEAD_DIM // SIZE
    residual, tokens, is_token = residual_of(
        block, head_stride, token_stride, centroids, ids, count, num_tokens, HEAD_DIM, TILE_S
    )
    groups = tl.reshape(residual, [TILE_S, GROUPS, SIZE])
    bits = e4m3_bits(tl.max(tl.abs(groups), 2) / LARGEST)
    row = tl.program_id(1).to(tl.int64) * num_tokens + tokens
    at = scales + row[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    tl.store(at, bits, mask=is_token[:, None])
    # A group whose scale underflows to zero keeps only its centroids.
    step = e4m3_value(bits)[:, :, None]
    levels = tl.where(step > 0, groups / tl.where(step > 0, step, 1.0), 0.0)
    levels = round_half_even(tl.clamp(levels, -LARGEST, LARGEST)) + LARGEST
    store_codes(codes, tl.reshape(levels, [TILE_S, HEAD_DIM]), row, is_token, BITS, HEAD_DIM, TILE_S)
