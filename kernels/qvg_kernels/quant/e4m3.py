"""Scales as 8-bit floats, held as uint8 bit patterns that every device and Triton's interpreter can read.

Invariant: `from_bits(to_bits(x))` is the nearest finite e4m3 value, ties to even, saturating at 448.
"""

import torch
from torch import Tensor

MAX = 448.0


def to_bits(values: Tensor) -> Tensor:
    """Float32 to e4m3 bit patterns, uint8, rounding to nearest even and saturating at +-448."""
    return values.clamp(-MAX, MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def from_bits(bits: Tensor) -> Tensor:
    """E4m3 bit patterns, uint8, to float32; exact."""
    return bits.view(torch.float8_e4m3fn).to(torch.float32)


def round_to_unit(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round a head's scales at full e4m3 range.

    Args:
        values: Float32 of any shape, all of one head.

    Returns:
        Bit patterns of `values / unit`, and the unit: float32 without axes, the least power of two that
        brings the largest magnitude to at most 448, or 2**-100 for zeros.
    """
    ratio = values.abs().amax() / MAX
    # Exact on every device, where a rounded logarithm could miss a power of two.
    mantissa, exponent = torch.frexp(ratio)
    exponent = torch.where(mantissa > 0.5, exponent, exponent - 1)
    unit = torch.exp2(torch.where(ratio > 0, exponent, -100).clamp(min=-100).float())
    return to_bits(values / unit), unit
