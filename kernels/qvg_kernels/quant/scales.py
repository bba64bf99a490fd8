"""Round a head's scales to e4m3 values times one unit: `e4m3.round_to_unit` is the reference."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.quant.numbers import e4m3_bits, power_of_two, unit_exponent
from qvg_kernels.runtime import encode_sizes
from qvg_kernels.runtime.warmup import kernel


@kernel(do_not_specialize=["count", "num_largest", "column"])
def _scale_kernel(
    values, largest, bits, units, count, num_largest, column, NUM_UNITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Round BLOCK values of a head by the unit of its largest magnitude, which the first program stores."""
    head = tl.program_id(1)
    most = tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_largest, BLOCK):
        place = first + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.load(largest + head * num_largest + place, place < num_largest, other=0.0))
    exponent = unit_exponent(tl.max(most, 0))
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = head.to(tl.int64) * count + place
    value = tl.load(values + at, mask=place < count, other=0.0)
    tl.store(bits + at, e4m3_bits(value * power_of_two(-exponent)), mask=place < count)
    if tl.program_id(0) == 0:
        tl.store(units + head * NUM_UNITS + column, power_of_two(exponent))


def round_scales(values: Tensor, largest: Tensor, bits: Tensor, units: Tensor, column: int) -> None:
    """Round each head's values at full e4m3 range.

    Args:
        values: `[H, N]` float32.
        largest: `[H, blocks]` float32, the largest magnitudes of parts that make up all values.
        bits: `[H, N]` uint8, contiguous; receives e4m3 bit patterns.
        units: `[H, U]` float32, contiguous; `column` receives the unit.
    """
    heads, count = values.shape
    block = encode_sizes.SPLIT_TOKENS
    _scale_kernel[(triton.cdiv(count, block), heads)](
        values, largest, bits, units, count, largest.shape[1], column, units.shape[1], block, num_warps=4
    )
