"""Blocks of the scheme "asym" read by kernels: `AsymCodec.decode` is the torch reference."""

import triton
import triton.language as tl

from qvg_kernels.codecs.asym.spec import AsymSpec
from qvg_kernels.codecs.reading import (
    CODEBOOK_ROWS,
    TOKENS,
    BlockReader,
    address,
    group_scales,
    largest_of,
    unpacked,
)
from qvg_kernels.quant import numbers


@triton.jit
def _begin(
    row, head, head_row, total, unit, smoothing, words, flips, SETTINGS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    BITS: tl.constexpr = SETTINGS[0]
    GROUPS: tl.constexpr = SETTINGS[1]
    codes = address(row, 0, tl.uint8, head_row * total * (HEAD_DIM * BITS // 8))
    steps = address(row, 1, tl.uint8, head_row * total * GROUPS)
    lows = address(row, 2, tl.uint8, head_row * total * GROUPS)
    ids = address(row, 3, tl.uint8, head_row * total)
    codebook = address(row, 4, tl.bfloat16, head_row * tl.load(row + CODEBOOK_ROWS) * HEAD_DIM)
    unit_row = address(row, 5, tl.float32, head_row * 2)
    return codes, steps, lows, ids, codebook, tl.load(unit_row), tl.load(unit_row + 1)


@triton.jit
def _read(state, tokens, SETTINGS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    """Low and step, then the centroid."""
    codes, steps, lows, ids, codebook, step_unit, low_unit = state
    BITS: tl.constexpr = SETTINGS[0]
    GROUPS: tl.constexpr = SETTINGS[1]
    # [TILE_S, HEAD_DIM]
    levels = numbers.float_of(unpacked(codes, tokens, BITS, HEAD_DIM * BITS // 8, HEAD_DIM, TILE_S))
    step = group_scales(steps, tokens, GROUPS, HEAD_DIM, TILE_S) * step_unit
    values = group_scales(lows, tokens, GROUPS, HEAD_DIM, TILE_S) * low_unit + step * levels
    centroid = tl.load(ids + tokens).to(tl.int32)
    at = codebook + centroid[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    return values + tl.load(at).to(tl.float32)


@triton.jit
def _bound(row, head, SETTINGS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """The farthest end of any group's levels and the largest centroid, one on top of the other."""
    groups = tl.load(row + TOKENS) * SETTINGS[1]
    steps, lows = address(row, 1, tl.uint8, head * groups), address(row, 2, tl.uint8, head * groups)
    unit_row = address(row, 5, tl.float32, head * 2)
    width, low_unit = tl.load(unit_row) * (2 ** SETTINGS[0] - 1), tl.load(unit_row + 1)
    found = tl.zeros([1024], tl.float32)
    for first in range(0, groups, 1024):
        at = first + tl.arange(0, 1024)
        low = numbers.e4m3_value(tl.load(lows + at, mask=at < groups, other=0)) * low_unit
        high = low + numbers.e4m3_value(tl.load(steps + at, mask=at < groups, other=0)) * width
        found = tl.maximum(found, tl.maximum(tl.abs(low), tl.abs(high)))
    farthest = tl.max(found, 0)
    size = tl.load(row + CODEBOOK_ROWS) * HEAD_DIM
    return farthest + largest_of(address(row, 4, tl.bfloat16, head * size), size, False, 1024)


def reader(spec: AsymSpec, head_dim: int) -> BlockReader:
    """What reads heads of `head_dim` channels."""
    settings = spec.bits, -(-head_dim // spec.block_size)
    tensors = ("codes", "steps", "lows", "ids", "centroids", "units")
    return BlockReader(head_dim, tensors, "centroids", spec.bits == 2, settings, _begin, _read, _bound)
