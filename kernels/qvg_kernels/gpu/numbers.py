"""Small pieces of arithmetic that several kernels share, exact on every device and in the interpreter.

bf16 values become float32 as soon as they are loaded: the interpreter computes on bf16 bit patterns.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.lattice import patterns
from qvg_kernels.rotation import hadamard, sign_patterns


@triton.jit
def e4m3_value(bits):
    """Float32 of e4m3 bit patterns (uint8), exact; `qvg_kernels.e4m3.from_bits` is the reference."""
    wide = bits.to(tl.int32)
    exponent = (wide >> 3) & 15
    normal = (((exponent + 120) << 23) | ((wide & 7) << 20)).to(tl.float32, bitcast=True)
    subnormal = (wide & 7).to(tl.float32) * 0.001953125
    magnitude = tl.where(exponent == 0, subnormal, normal)
    return tl.where(wide >= 128, -magnitude, magnitude)


@triton.jit
def round_half_even(values):
    """Nearest integers of float32 values below 2**22, ties to even."""
    return (values + 12582912.0) - 12582912.0


@triton.jit
def mix(values):
    """`qvg_kernels.rotation.mix` of uint32 values."""
    values = values ^ (values >> 16)
    values = values * 0x7FEB352D
    values = values ^ (values >> 15)
    values = values * 0x846CA68B
    return values ^ (values >> 16)


@triton.jit
def token_pattern(tokens, phase):
    """Number of each token's sign pattern: `qvg_kernels.rotation.token_patterns`, int32.

    Args:
        tokens: int32 numbers of the tokens in their span.
        phase: Byte of the span.
    """
    return (mix((tokens + 65537 * phase.to(tl.int32)).to(tl.uint32)) % 64).to(tl.int32)


@triton.jit
def flip_signs(values, flips):
    """Float32 values, negated where `flips` (int8) is -128 and kept where it is 0."""
    bits = values.to(tl.int32, bitcast=True) ^ (flips.to(tl.int32) << 24)
    return bits.to(tl.float32, bitcast=True)


@cache
def sign_flips(head_dim: int, device: torch.device) -> Tensor:
    """`[64, head_dim]` int8 for `flip_signs`: -128 where a sign pattern is negative, else 0."""
    flips: Tensor = torch.where(sign_patterns(head_dim, device) < 0, -128, 0).to(torch.int8)
    return flips


@cache
def hadamard_signs(head_dim: int, device: torch.device) -> Tensor:
    """`[head_dim, head_dim]` bf16 Sylvester matrix of 1 and -1; the kernels divide by `sqrt(head_dim)`."""
    return hadamard(head_dim, device).sign().to(torch.bfloat16)


@cache
def lattice_patterns(device: torch.device) -> Tensor:
    """`[256]` int32, a pattern's code to its eight digits (0, 1, 2 for 1/2, 3/2, 5/2), two bits each.

    Bit 16 says that the pattern wants an odd number of negative values.
    """
    words = torch.zeros(256, dtype=torch.int32)
    for code, pattern in enumerate(patterns()):
        digits = sum((entry // 2) << (2 * place) for place, entry in enumerate(pattern))
        words[code] = digits | (pattern.count(3) % 2) << 16
    return words.to(device)
