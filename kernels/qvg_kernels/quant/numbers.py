"""Small pieces of arithmetic that several kernels share, exact on every device and in the interpreter.

bf16 values become float32 as soon as they are loaded: the interpreter computes on bf16 bit patterns.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.quant import lattice, roots
from qvg_kernels.quant.hadamard import hadamard, sign_patterns


@triton.jit
def e4m3_value(bits):
    """Float32 of e4m3 bit patterns (uint8), exact; `e4m3.from_bits` is the reference."""
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
def float_of(integers):
    """Float32 of int32 between -2**22 and 2**22, without the slow conversion."""
    return (integers + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0


@triton.jit
def int_of(values):
    """Int32 of float32 integers from 0 to 2**22, without the slow conversion."""
    return (values + 8388608.0).to(tl.int32, bitcast=True) & 0x7FFFFF


@triton.jit
def half_of(integers):
    """Float16 of integers between -512 and 511, without the slow conversion."""
    return (integers.to(tl.int16) + 0x6600).to(tl.float16, bitcast=True) - 1536.0


@triton.jit
def int8_of(values):
    """Nearest int8, at most 127 either way: a float16 between 1024 and 2048 ends in its integer's bits."""
    most = tl.full(values.shape, 127.0, tl.float16)
    bounded = tl.minimum(tl.maximum(values.to(tl.float16), -most), most)
    return (bounded + 1536.0).to(tl.int16, bitcast=True).to(tl.int8)


@triton.jit
def mix(values):
    """`hadamard.mix` of uint32 values."""
    values = values ^ (values >> 16)
    values = values * 0x7FEB352D
    values = values ^ (values >> 15)
    values = values * 0x846CA68B
    return values ^ (values >> 16)


@triton.jit
def token_pattern(tokens, phase):
    """Number of each token's sign pattern: `hadamard.token_patterns`, int32.

    Args:
        tokens: int32 numbers of the tokens in their block.
        phase: Byte of the block.
    """
    return (mix((tokens + 65537 * phase.to(tl.int32)).to(tl.uint32)) % 64).to(tl.int32)


@triton.jit
def flip_signs(values, flips):
    """Float16 values, negated where `flips` (int16) is -2**15 and kept where it is 0."""
    return (values.to(tl.int16, bitcast=True) ^ flips).to(tl.float16, bitcast=True)


@cache
def sign_flips(head_dim: int, device: torch.device) -> Tensor:
    """`[64, head_dim]` int16 for `flip_signs`: -2**15 where a sign pattern is negative, else 0."""
    flips: Tensor = torch.where(sign_patterns(head_dim, device) < 0, -(2**15), 0).to(torch.int16)
    return flips


@cache
def word_sums(bits: int, device: torch.device) -> Tensor:
    """`[65536, 8]` float16, 1 MiB, for grid "e8", 2 bits, or `[256, 8]`, 4 KiB, for "e8x1", 1 bit: the eight
    levels of each code times the Sylvester matrix of ones.
    """
    if bits == 2:
        levels = lattice.codewords(device).view(torch.int8).view(-1, 8).float()
    else:
        levels = roots.codewords(device)
    return (levels @ hadamard(8, device).sign()).half()


@cache
def pattern_words(device: torch.device) -> Tensor:
    """`[256]` int32, the eight entries of each of the codebook's patterns in four bits: 0, 1 and 2 for 1, 3
    and 5 halves, and 4 more in the last one if an odd number of signs is wanted.
    """
    words = [
        sum((entry - 1) // 2 << 4 * place for place, entry in enumerate(pattern)) | pattern.count(3) % 2 << 30
        for pattern in lattice.patterns()
    ]
    return torch.tensor([*words, 0], dtype=torch.int32, device=device)


@cache
def root_words(device: torch.device) -> Tensor:
    """`[256]` int32, the eight levels of each code of grid "e8x1" in four bits: the size, and 4 more if it is
    negative.
    """
    levels = roots.codewords(device).long()
    digits = levels.abs() + 4 * (levels < 0)
    return (digits << 4 * torch.arange(8, device=device)).sum(-1).int()


OPERAND = tl.constexpr(tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16)
"""What values become before a product: the interpreter cannot multiply bf16 values, and keeps float32."""


OPERAND_DTYPE = torch.float32 if triton.knobs.runtime.interpret else torch.bfloat16
"""torch's name of OPERAND, for tensors that hold one side of a product."""


@triton.jit
def e4m3_bits(values):
    """Nearest e4m3 bit patterns (uint8) of float32 values; `e4m3.to_bits` is the reference."""
    wide = values.to(tl.int32, bitcast=True)
    magnitude = tl.minimum(tl.abs(values), 448.0)
    bits = magnitude.to(tl.int32, bitcast=True)
    # Exponent and three bits of the mantissa, rounded to nearest even; the bias is 7 instead of 127.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
    subnormal = round_half_even(magnitude * 512.0).to(tl.int32)
    return (tl.where(magnitude < 0.015625, subnormal, normal) | ((wide >> 24) & 128)).to(tl.uint8)


@triton.jit
def unit_exponent(largest):
    """Exponent of the unit that `e4m3.round_to_unit` takes for a largest magnitude, int32."""
    bits = largest.to(tl.int32, bitcast=True)
    # 448 is 1.75 * 2**8: one more where the mantissa is over 1.75.
    exponent = (bits >> 23) - 135 + ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)
    return tl.maximum(exponent, -100)


@triton.jit
def power_of_two(exponent):
    """Float32 `2**exponent` for int32 exponents from -126 to 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)
