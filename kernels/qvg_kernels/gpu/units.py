"""The unit of a head's e4m3 values in the workspace: a power of two that brings their bound to 448.

e4m3 keeps its precision over 15 powers of two, so a bound from a span's tables is enough; the values are not
searched. Beyond the bound values saturate.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qvg_kernels.gpu import numbers
from qvg_kernels.gpu.decode import TABLE_ROWS, TOKENS, address


@triton.jit
def _store_unit(units, head, bound):
    """Store the unit that brings a head's bound to at most 448."""
    tl.store(units + head, numbers.power_of_two(numbers.unit_exponent(bound)))


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
def fitted_unit_kernel(
    entries, num_entries, gain, units, ENTRY_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """Unit that e4m3 values of a head are stored in: their bound, from offsets and weights, comes to 448.

    A weight is the root of a channel's deviation; eight deviations from the mean are taken as the bound.
    """
    head = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, HEAD_DIM)
    bound = tl.full([HEAD_DIM], 1.0e-20, tl.float32)
    for entry in range(num_entries):
        row = entries + entry * ENTRY_COLUMNS
        weight_bits = tl.load(address(row, 2, tl.uint8, head * HEAD_DIM) + channels)
        weight = numbers.e4m3_value(weight_bits) * tl.load(address(row, 4, tl.float32, head * 3 + 1))
        offset = tl.load(address(row, 3, tl.float32, head * HEAD_DIM) + channels)
        bound = tl.maximum(bound, tl.abs(offset) + 8.0 * weight * weight)
    _store_unit(units, head, tl.max(bound, 0) * gain)


@triton.jit
def qvg_unit_kernel(
    entries, num_entries, gain, units, BITS: tl.constexpr, STAGES: tl.constexpr, BLOCKS: tl.constexpr,
    ENTRY_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
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
    _store_unit(units, head, bound * gain)


@triton.jit
def asym_unit_kernel(
    entries, num_entries, gain, units, BITS: tl.constexpr, ENTRY_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    head = tl.program_id(0).to(tl.int64)
    bound = 1.0e-20
    for entry in range(num_entries):
        row = entries + entry * ENTRY_COLUMNS
        unit_row = address(row, 5, tl.float32, head * 2)
        # The largest e4m3 number of either kind times its unit.
        found = 448.0 * (tl.load(unit_row + 1) + tl.load(unit_row) * (2**BITS - 1))
        size = tl.load(row + TABLE_ROWS) * HEAD_DIM
        found += _largest(address(row, 4, tl.bfloat16, head * size), size, False, 1024)
        bound = tl.maximum(bound, found)
    _store_unit(units, head, bound * gain)
