"""The values that the encoding kernels read: heads of a tile, shifted and scaled in registers when loaded;
where their channels stand, how far these spread, whether all is finite; and scales rounded to e4m3.

Means and deviations of splits of the tokens are taken from a token of the split and merged in a fixed order
(Chan, Golub and LeVeque 1979): a large offset costs no precision. `FittedCodec.encode_head` and
`e4m3.round_to_unit` are the torch references. Invariant: nothing that the kernels make of a head depends on
which other heads a launch has: axis 1 of every grid is the head, and how its tokens are cut depends on their
number alone.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.quant.numbers import e4m3_bits, e4m3_value, power_of_two, unit_exponent
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import kernel

NOWHERE = tl.constexpr(2**31 - 1)
"""Place of the first value that is not finite, where there is none."""


@dataclass(frozen=True)
class Points:
    """Heads of one block, and where the channels stand.

    Attributes:
        block: `[H, S, D]` of a floating dtype, any strides but the last.
        offset: `[H, D]` float32 that is subtracted from each channel; `None` for values as they are.
        inverse: `[H, D]` float32 that multiplies each channel afterwards, given with `offset`.
    """

    block: Tensor
    offset: Tensor | None = None
    inverse: Tensor | None = None

    @property
    def heads(self) -> int:
        return self.block.shape[0]

    @property
    def tokens(self) -> int:
        return self.block.shape[1]

    @property
    def head_dim(self) -> int:
        return self.block.shape[2]

    @property
    def strides(self) -> tuple[int, ...]:
        """From head to head and from token to token."""
        return self.block.stride()[:2]

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor on the block's device that a kernel fills, with the heads before `shape`."""
        return torch.empty(self.heads, *shape, dtype=dtype, device=self.block.device)


@triton.jit
def load_tokens(block, head_stride, token_stride, tokens, is_token, HEAD_DIM: tl.constexpr):
    """`[TILE_S, HEAD_DIM]` of the program's head as stored; 0 where `is_token` does not hold."""
    at = block + tl.program_id(1).to(tl.int64) * head_stride
    at += tokens[:, None].to(tl.int64) * token_stride + tl.arange(0, HEAD_DIM)[None, :]
    return tl.load(at, mask=is_token[:, None], other=0.0)


@triton.jit
def centred(values, offset, inverse, HEAD_DIM: tl.constexpr):
    """Float32 of what `load_tokens` gave, shifted and scaled as `Points` says."""
    values = values.to(tl.float32)
    if offset is not None:
        # Vectors, so that every thread reads its own channels: rows of a matrix would be read in a layout
        # of their own, and the values go through shared memory to meet them.
        at = tl.program_id(1) * HEAD_DIM + tl.arange(0, HEAD_DIM)
        values = (values - tl.load(offset + at)[None, :]) * tl.load(inverse + at)[None, :]
    return values


@triton.jit
def _merge(mean, square, count, other_mean, other_square, other_count):
    """Mean, squared deviation and number of two sets of values."""
    total = tl.maximum(count + other_count, 1.0)
    difference = other_mean - mean
    part = other_count / total
    mean += difference * part
    square += other_square + difference * difference * (count * part)
    return mean, square, count + other_count


@triton.jit
def _is_bad(values):
    """Whether float32 values are NaN or infinite."""
    return (values.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >= 0x7F800000


@kernel(do_not_specialize=["num_tokens"])
def _moments_kernel(
    block, head_stride, token_stride, means, squares, checks, num_tokens,
    HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr, SPLIT_TOKENS: tl.constexpr,
):  # fmt: skip
    """Means and squared deviations of the channels over SPLIT_TOKENS tokens, and what is not finite."""
    split, head = tl.program_id(0), tl.program_id(1)
    channels = tl.arange(0, HEAD_DIM)
    start = split * SPLIT_TOKENS
    stop = tl.minimum(start + SPLIT_TOKENS, num_tokens)
    # Sums are taken from the first token, which lies among the others, and across tokens only at the end.
    pivot = load_tokens(
        block, head_stride, token_stride, start + tl.arange(0, 1), tl.arange(0, 1) < 1, HEAD_DIM
    )
    pivot = pivot.to(tl.float32)
    total = tl.zeros([TILE_S, HEAD_DIM], tl.float32)
    square = tl.zeros([TILE_S, HEAD_DIM], tl.float32)
    for first in range(start, stop, TILE_S):
        tokens = first + tl.arange(0, TILE_S)
        is_token = tokens < stop
        # [TILE_S, HEAD_DIM]
        values = load_tokens(block, head_stride, token_stride, tokens, is_token, HEAD_DIM).to(tl.float32)
        difference = tl.where(is_token[:, None], values - pivot, 0.0)
        total += difference
        square += difference * difference
    count = (stop - start).to(tl.float32)
    moved = tl.sum(total, 0) / count
    mean = tl.sum(pivot, 0) + moved
    energy = tl.sum(square, 0)
    deviation = tl.maximum(energy - moved * moved * count, 0.0)
    row = head * tl.num_programs(0) + split
    tl.store(means + row * HEAD_DIM + channels, mean)
    tl.store(squares + row * HEAD_DIM + channels, deviation)
    # One value that is not finite makes the energy so; only then they are counted.
    num_bad, first_bad = 0, NOWHERE
    if _is_bad(tl.sum(energy, 0)):
        for first in range(start, stop, TILE_S):
            tokens = first + tl.arange(0, TILE_S)
            # [TILE_S, HEAD_DIM]
            values = load_tokens(block, head_stride, token_stride, tokens, tokens < stop, HEAD_DIM)
            is_bad = _is_bad(values.to(tl.float32))
            num_bad += tl.sum(tl.sum(is_bad.to(tl.int32), 1), 0)
            place = tl.where(is_bad, tokens[:, None] * HEAD_DIM + channels[None, :], NOWHERE)
            first_bad = tl.minimum(first_bad, tl.min(tl.min(place, 1), 0))
    tl.store(checks + row * 2, num_bad)
    tl.store(checks + row * 2 + 1, first_bad)


@kernel(do_not_specialize=["num_tokens", "num_splits"])
def _weigh_kernel(
    block, head_stride, token_stride, means, squares, checks, offset, inverse, weights, units, check,
    num_tokens, num_splits,
    HEAD_DIM: tl.constexpr, SPLIT_TOKENS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One head's offset and weights from its splits; without `weights` only `check`."""
    head = tl.program_id(1)
    channels = tl.arange(0, HEAD_DIM)
    mean = tl.zeros([HEAD_DIM], tl.float32)
    square = tl.zeros([HEAD_DIM], tl.float32)
    count = tl.zeros([HEAD_DIM], tl.float32)
    num_bad, first_bad = 0, NOWHERE
    for first in range(0, num_splits, TILE):
        split = first + tl.arange(0, TILE)
        is_split = split < num_splits
        row = head * num_splits + split
        num_bad += tl.sum(tl.load(checks + row * 2, mask=is_split, other=0), 0)
        found = tl.load(checks + row * 2 + 1, mask=is_split, other=NOWHERE)
        first_bad = tl.minimum(first_bad, tl.min(found, 0))
        if weights is not None:
            size = tl.clamp((num_tokens - split * SPLIT_TOKENS).to(tl.float32), 0.0, SPLIT_TOKENS)
            at = row[:, None] * HEAD_DIM + channels[None, :]
            # Two [TILE, HEAD_DIM].
            other_mean = tl.load(means + at, mask=is_split[:, None], other=0.0)
            other_square = tl.load(squares + at, mask=is_split[:, None], other=0.0)
            sizes = tl.broadcast_to(size[:, None], [TILE, HEAD_DIM])
            merged = tl.reduce((other_mean, other_square, sizes), 0, _merge)
            mean, square, count = _merge(mean, square, count, merged[0], merged[1], merged[2])
    place = tl.where(num_bad > 0, first_bad, 0)
    at = block + head.to(tl.int64) * head_stride + (place // HEAD_DIM).to(tl.int64) * token_stride
    value = tl.load(at + place % HEAD_DIM).to(tl.float32)
    tl.store(check + head * 3, num_bad)
    tl.store(check + head * 3 + 1, place)
    tl.store(check + head * 3 + 2, value.to(tl.int32, bitcast=True))
    if weights is not None:
        weight = tl.sqrt(tl.sqrt(square / count))
        largest = tl.max(weight, 0)
        weight = tl.where(largest > 0, tl.maximum(weight, largest * 0.00006103515625), 1.0)
        exponent = unit_exponent(tl.max(weight, 0))
        bits = e4m3_bits(weight * power_of_two(-exponent))
        at = head * HEAD_DIM + channels
        tl.store(weights + at, bits)
        tl.store(units + head * 3 + 1, power_of_two(exponent))
        tl.store(offset + at, mean)
        tl.store(inverse + at, 1.0 / (e4m3_value(bits) * power_of_two(exponent)))


def measure(
    points: Points, check: Tensor, weights: Tensor | None = None, units: Tensor | None = None
) -> Points:
    """Points less their means and over their weights; without `weights` only whether values are finite.

    Args:
        points: With no offset.
        check: `[H, 3]` int32, contiguous; receives what `codec.FiniteCheck` wants.
        weights: `[H, D]` uint8, contiguous; receives e4m3 bit patterns.
        units: `[H, 3]` float32, contiguous; its second column receives the unit of the weights.
    """
    tokens, head_dim = points.tokens, points.head_dim
    shape, split = launch.groups(head_dim), launch.SPLIT_TOKENS
    splits = triton.cdiv(tokens, split)
    means, squares = points.empty(splits, head_dim), points.empty(splits, head_dim)
    checks = points.empty(splits, 2, dtype=torch.int32)
    _moments_kernel[(splits, points.heads)](
        points.block, *points.strides, means, squares, checks, tokens,
        head_dim, shape.rows, split, num_warps=shape.warps,
    )  # fmt: skip
    found = Points(points.block, points.empty(head_dim), points.empty(head_dim))
    _weigh_kernel[(1, points.heads)](
        points.block, *points.strides, means, squares, checks,
        found.offset, found.inverse, weights, units, check, tokens, splits, head_dim, split, 16, num_warps=4,
    )  # fmt: skip
    return found


@kernel(do_not_specialize=["count", "num_largest", "column"])
def _scale_kernel(
    values, largest, bits, units, count, num_largest, column, NUM_UNITS: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Round TILE values of a head by the unit of its largest magnitude, which the first program stores."""
    head = tl.program_id(1)
    most = tl.zeros([TILE], tl.float32)
    for first in range(0, num_largest, TILE):
        place = first + tl.arange(0, TILE)
        most = tl.maximum(most, tl.load(largest + head * num_largest + place, place < num_largest, other=0.0))
    exponent = unit_exponent(tl.max(most, 0))
    place = tl.program_id(0) * TILE + tl.arange(0, TILE)
    at = head.to(tl.int64) * count + place
    value = tl.load(values + at, mask=place < count, other=0.0)
    tl.store(bits + at, e4m3_bits(value * power_of_two(-exponent)), mask=place < count)
    if tl.program_id(0) == 0:
        tl.store(units + head * NUM_UNITS + column, power_of_two(exponent))


def round_scales(values: Tensor, largest: Tensor, bits: Tensor, units: Tensor, column: int) -> None:
    """Round each head's values at full e4m3 range.

    Args:
        values: `[H, N]` float32.
        largest: `[H, tiles]` float32, the largest magnitudes of tiles.
        bits: `[H, N]` uint8, contiguous; receives e4m3 bit patterns.
        units: `[H, U]` float32, contiguous; `column` receives the unit.
    """
    heads, count = values.shape
    tile = launch.SPLIT_TOKENS
    _scale_kernel[(triton.cdiv(count, tile), heads)](
        values, largest, bits, units, count, largest.shape[1], column, units.shape[1], tile, num_warps=4
    )
