"""Blocks of the scheme "asym" packed by kernels: `AsymCodec.encode_head` is the torch reference.

A residual is what a token's centroid, rounded to bf16, leaves of it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.codecs.asym.spec import AsymSpec
from qvg_kernels.codecs.encoding import Packed, cluster, draw_starts, encode_heads, residual_of, store_codes
from qvg_kernels.quant.numbers import e4m3_value, round_half_even
from qvg_kernels.quant.points import Points, measure, round_scales
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import kernel


def encode(block: Tensor, spec: AsymSpec, seed: int) -> Packed:
    """Pack `[B, H, S, D]` values."""
    _, _, tokens, head_dim = block.shape
    count, size = min(spec.num_centroids, tokens), min(spec.block_size, head_dim)
    tile, groups = launch.groups(head_dim).rows, head_dim // size
    tiles = triton.cdiv(tokens, tile)
    (starts,) = draw_starts(tokens, count, 1, seed, block.device)

    def fill(points: Points, target: dict[str, Tensor], found: Tensor) -> None:
        measure(points, found)
        ids, rounded = cluster(points, starts, spec.iterations)
        target["ids"].copy_(ids)
        target["centroids"].copy_(rounded)
        lows, steps = points.empty(tokens * groups), points.empty(tokens * groups)
        largest_low, largest_step = points.empty(tiles), points.empty(tiles)
        _extent_kernel[(tiles, points.heads)](
            points.block, *points.strides, rounded, ids, lows, steps, largest_low, largest_step,
            count, tokens, spec.bits, size, head_dim, tile, num_warps=4,
        )  # fmt: skip
        round_scales(steps, largest_step, target["steps"], target["units"], 0)
        round_scales(lows, largest_low, target["lows"], target["units"], 1)
        _asymmetric_kernel[(tiles, points.heads)](
            points.block, *points.strides, rounded, ids,
            target["lows"], target["steps"], target["units"], target["codes"],
            count, tokens, spec.bits, size, head_dim, tile, num_warps=4,
        )  # fmt: skip

    shapes = {
        "codes": (torch.uint8, (tokens, head_dim * spec.bits // 8)),
        "steps": (torch.uint8, (tokens, groups)),
        "lows": (torch.uint8, (tokens, groups)),
        "ids": (torch.uint8, (tokens,)),
        "centroids": (torch.bfloat16, (count, head_dim)),
        "units": (torch.float32, (2,)),
    }
    return encode_heads(block, spec, shapes, fill)


@kernel(do_not_specialize=["count", "num_tokens"])
def _extent_kernel(
    block, head_stride, token_stride, centroids, ids, lows, steps, largest_low, largest_step,
    count, num_tokens,
    BITS: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    """Lowest residual and exact step of groups of SIZE channels, and the largest of each in this program."""
    GROUPS: tl.constexpr = HEAD_DIM // SIZE
    residual, tokens, is_token = residual_of(
        block, head_stride, token_stride, centroids, ids, count, num_tokens, HEAD_DIM, TILE_S
    )
    groups = tl.reshape(residual, [TILE_S, GROUPS, SIZE])
    low = tl.min(groups, 2)
    step = (tl.max(groups, 2) - low) / (2**BITS - 1)
    head = tl.program_id(1)
    row = head.to(tl.int64) * num_tokens + tokens
    at = row[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    tl.store(lows + at, low, mask=is_token[:, None])
    tl.store(steps + at, step, mask=is_token[:, None])
    part = head * tl.num_programs(0) + tl.program_id(0)
    tl.store(largest_low + part, tl.max(tl.max(tl.where(is_token[:, None], tl.abs(low), 0.0), 1), 0))
    tl.store(largest_step + part, tl.max(tl.max(tl.where(is_token[:, None], step, 0.0), 1), 0))


@kernel(do_not_specialize=["count", "num_tokens"])
def _asymmetric_kernel(
    block, head_stride, token_stride, centroids, ids, lows, steps, units, codes, count, num_tokens,
    BITS: tl.constexpr, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    """Round groups of SIZE channels to levels from their stored low upwards, by their stored step."""
    GROUPS: tl.constexpr = HEAD_DIM // SIZE
    residual, tokens, is_token = residual_of(
        block, head_stride, token_stride, centroids, ids, count, num_tokens, HEAD_DIM, TILE_S
    )
    head = tl.program_id(1)
    row = head.to(tl.int64) * num_tokens + tokens
    at = row[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    # Two [TILE_S, GROUPS].
    step = e4m3_value(tl.load(steps + at, mask=is_token[:, None], other=0)) * tl.load(units + head * 2)
    low = e4m3_value(tl.load(lows + at, mask=is_token[:, None], other=0)) * tl.load(units + head * 2 + 1)
    groups = tl.reshape(residual, [TILE_S, GROUPS, SIZE]) - low[:, :, None]
    step = step[:, :, None]
    levels = tl.where(step > 0, groups / tl.where(step > 0, step, 1.0), 0.0)
    levels = round_half_even(tl.clamp(levels, 0.0, 2**BITS - 1))
    store_codes(codes, tl.reshape(levels, [TILE_S, HEAD_DIM]), row, is_token, BITS, HEAD_DIM, TILE_S)
