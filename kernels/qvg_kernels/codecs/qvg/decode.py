"""Blocks of the scheme "qvg" read by kernels: `QvgCodec.decode` is the torch reference."""

import triton
import triton.language as tl

from qvg_kernels.codecs.qvg.spec import QvgSpec
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
    GROUPS: tl.constexpr = SETTINGS[2]
    codes = address(row, 0, tl.uint8, head_row * total * (HEAD_DIM * BITS // 8))
    scales = address(row, 1, tl.uint8, head_row * total * GROUPS)
    return codes, scales, row, head_row, total, tl.load(row + CODEBOOK_ROWS)


@triton.jit
def _read(state, tokens, SETTINGS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    """The residual, then the centroids of all stages in order."""
    codes, scales, row, head_row, total, codebook_rows = state
    BITS: tl.constexpr = SETTINGS[0]
    STAGES: tl.constexpr = SETTINGS[1]
    # [TILE_S, HEAD_DIM]
    levels = unpacked(codes, tokens, BITS, HEAD_DIM * BITS // 8, HEAD_DIM, TILE_S) - (2 ** (BITS - 1) - 1)
    values = numbers.float_of(levels)
    values *= group_scales(scales, tokens, SETTINGS[2], HEAD_DIM, TILE_S)
    for stage in tl.static_range(STAGES):
        stage_row = head_row * STAGES + stage
        ids = tl.load(address(row, 2, tl.uint8, stage_row * total) + tokens).to(tl.int32)
        codebook = address(row, 3, tl.bfloat16, stage_row * codebook_rows * HEAD_DIM)
        values += tl.load(codebook + ids[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]).to(tl.float32)
    return values


@triton.jit
def _bound(row, head, SETTINGS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """The largest residual and the largest centroids of all stages, one on top of the other."""
    scales = tl.load(row + TOKENS) * SETTINGS[2]
    found = largest_of(address(row, 1, tl.uint8, head * scales), scales, True, 1024)
    found *= 2 ** (SETTINGS[0] - 1) - 1
    size = tl.load(row + CODEBOOK_ROWS) * HEAD_DIM
    for stage in range(SETTINGS[1]):
        codebook = address(row, 3, tl.bfloat16, (head * SETTINGS[1] + stage) * size)
        found += largest_of(codebook, size, False, 1024)
    return found


def reader(spec: QvgSpec, head_dim: int) -> BlockReader:
    """What reads heads of `head_dim` channels."""
    settings = spec.bits, spec.stages, -(-head_dim // spec.block_size)
    tensors = ("codes", "scales", "ids", "centroids")
    return BlockReader(head_dim, tensors, "centroids", spec.bits == 2, settings, _begin, _read, _bound)
