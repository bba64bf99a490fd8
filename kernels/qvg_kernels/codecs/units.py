"""The unit of a head's 8-bit numbers in the workspace: it brings their bound to the largest number.

Bounds come from a span's tables; the values are not searched. Beyond the bound they saturate. Keys become
int8, to which the bound matters: half of the range left empty is twice the error. Pairs of channels that are
turned together are brought near each other before: keys are divided by a factor of the pair and queries
multiplied by it, as in SmoothQuant (arXiv 2211.10438). Values become e4m3, which keeps its precision over 15
powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qvg_kernels.codecs.decoding import TABLE_ROWS, TOKENS, address
from qvg_kernels.quant import numbers
from qvg_kernels.rope.kernels import ROTARY
from qvg_kernels.runtime.warmup import kernel


@triton.jit
def _store_unit(units, head, bound, IS_KEY: tl.constexpr):
    """Store the unit that brings a head's bound to at most 127, or 448."""
    if IS_KEY:
        # Four significant bits: numbers that have no more, as weights have, come out exact in float16.
        inverse = (127.0 / bound).to(tl.int32, bitcast=True) & -0x100000
        unit = 1.0 / inverse.to(tl.float32, bitcast=True)
    else:
        unit = numbers.power_of_two(numbers.unit_exponent(bound))
    tl.store(units + head, unit)


@triton.jit
def _largest(start, count, IS_E4M3: tl.constexpr, BLOCK: tl.constexpr):
    """Largest magnitude of `count` numbers from a pointer on."""
    found = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        values = tl.load(start + at, mask=at < count, other=0)
        values = numbers.e4m3_value(values) if IS_E4M3 else values.to(tl.float32)
        found = tl.maximum(found, tl.abs(values))
    return tl.max(found, 0)


@triton.jit
def _farthest(steps, lows, count, width, low_unit, BLOCK: tl.constexpr):
    """Largest magnitude of either end of `count` ranges: from a low, `width` steps on."""
    found = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        low = numbers.e4m3_value(tl.load(lows + at, mask=at < count, other=0)) * low_unit
        high = low + numbers.e4m3_value(tl.load(steps + at, mask=at < count, other=0)) * width
        found = tl.maximum(found, tl.maximum(tl.abs(low), tl.abs(high)))
    return tl.max(found, 0)


@kernel(do_not_specialize=["num_entries"])
def fitted_unit_kernel(
    entries, num_entries, gain, units, factors,
    IS_KEY: tl.constexpr, PLACEMENT: tl.constexpr, ENTRY_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Bound from offsets and weights: a weight is the root of a channel's deviation.

    Eight deviations from the mean are taken for values, five for keys. A pair of channels that is turned
    reaches as far as it is long.

    Args:
        factors: `[B * H, HEAD_DIM]` of keys: each channel's, at most 1.
    """
    DEVIATIONS: tl.constexpr = 5.0 if IS_KEY else 8.0
    head = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, HEAD_DIM)
    bound = tl.full([HEAD_DIM // 2], 1.0e-20, tl.float32)
    for entry in range(num_entries):
        row = entries + entry * ENTRY_COLUMNS
        weight_bits = tl.load(address(row, 2, tl.uint8, head * HEAD_DIM) + channels)
        weight = numbers.e4m3_value(weight_bits) * tl.load(address(row, 4, tl.float32, head * 3 + 1))
        offset = tl.load(address(row, 3, tl.float32, head * HEAD_DIM) + channels)
        first, second = tl.split(tl.reshape(offset, [HEAD_DIM // 2, 2]))
        spread, other_spread = tl.split(tl.reshape(DEVIATIONS * weight * weight, [HEAD_DIM // 2, 2]))
        if PLACEMENT == ROTARY:
            found = tl.sqrt(first * first + second * second) + tl.maximum(spread, other_spread)
        else:
            found = gain * tl.maximum(tl.abs(first) + spread, tl.abs(second) + other_spread)
        bound = tl.maximum(bound, found)
    largest = tl.max(bound, 0)
    _store_unit(units, head, largest, IS_KEY)
    if IS_KEY:
        # Half of the way to equal bounds: what keys gain queries lose.
        one = tl.full([HEAD_DIM // 2], 1.0, tl.float32)
        factor = tl.sqrt(bound / largest) if PLACEMENT == ROTARY else one
        both = tl.reshape(tl.join(factor, factor), [HEAD_DIM])
        tl.store(factors + head * HEAD_DIM + channels, tl.maximum(both, 1.0 / 64.0))


@kernel(do_not_specialize=["num_entries"])
def qvg_unit_kernel(
    entries, num_entries, gain, units, factors,
    BITS: tl.constexpr, STAGES: tl.constexpr, BLOCKS: tl.constexpr, IS_KEY: tl.constexpr,
    PLACEMENT: tl.constexpr, ENTRY_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    bound = 1.0e-20
    for entry in range(num_entries):
        row = entries + entry * ENTRY_COLUMNS
        scales = tl.load(row + TOKENS) * BLOCKS
        found = _largest(address(row, 1, tl.uint8, head * scales), scales, True, 1024) * (2 ** (BITS - 1) - 1)
        size = tl.load(row + TABLE_ROWS) * HEAD_DIM
        for stage in range(STAGES):
            table = address(row, 3, tl.bfloat16, (head * STAGES + stage) * size)
            found += _largest(table, size, False, 1024)
        bound = tl.maximum(bound, found)
    _store_unit(units, head, bound * gain, IS_KEY)
    if IS_KEY:
        tl.store(factors + head * HEAD_DIM + tl.arange(0, HEAD_DIM), tl.full([HEAD_DIM], 1.0, tl.float32))


@kernel(do_not_specialize=["num_entries"])
def asym_unit_kernel(
    entries, num_entries, gain, units, factors, BITS: tl.constexpr, BLOCKS: tl.constexpr,
    IS_KEY: tl.constexpr, PLACEMENT: tl.constexpr, ENTRY_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    bound = 1.0e-20
    for entry in range(num_entries):
        row = entries + entry * ENTRY_COLUMNS
        blocks = tl.load(row + TOKENS) * BLOCKS
        steps, lows = address(row, 1, tl.uint8, head * blocks), address(row, 2, tl.uint8, head * blocks)
        unit_row = address(row, 5, tl.float32, head * 2)
        found = _farthest(steps, lows, blocks, tl.load(unit_row) * (2**BITS - 1), tl.load(unit_row + 1), 1024)
        size = tl.load(row + TABLE_ROWS) * HEAD_DIM
        found += _largest(address(row, 4, tl.bfloat16, head * size), size, False, 1024)
        bound = tl.maximum(bound, found)
    _store_unit(units, head, bound * gain, IS_KEY)
    if IS_KEY:
        tl.store(factors + head * HEAD_DIM + tl.arange(0, HEAD_DIM), tl.full([HEAD_DIM], 1.0, tl.float32))
