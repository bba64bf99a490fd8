"""Blocks of plain bf16 numbers read by kernels."""

import triton
import triton.language as tl

from qvg_kernels.codecs.reading import BlockReader, address


@triton.jit
def _begin(
    row, head, head_row, total, unit, smoothing, words, flips, SETTINGS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    return (address(row, 0, tl.bfloat16, head_row * total * HEAD_DIM),)


@triton.jit
def _read(state, tokens, SETTINGS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    return tl.load(state[0] + tokens[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]).to(tl.float32)


def reader(head_dim: int) -> BlockReader:
    """What reads heads of `head_dim` channels."""
    return BlockReader(head_dim, ("values",), None, False, (), _begin, _read)
