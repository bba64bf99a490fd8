"""Small unsigned codes packed into bytes, so that any run of tokens can be read without the others.

Invariant: `unpack(pack(codes)) == codes`, and no two rows share a byte.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of 1, 2, 4 or 8 bits.

    Args:
        codes: `[..., D]` uint8, below `2 ** bits`.
        bits: Of one code.

    Returns:
        `[..., D * bits // 8]` uint8; code i of a row is bits `bits * (i % n)` upwards of byte `i // n`, with
        `n = 8 // bits` codes a byte.
    """
    per_byte = 8 // bits
    grouped = codes.reshape(*codes.shape[:-1], -1, per_byte)
    packed: Tensor = grouped[..., 0].clone()
    for position in range(1, per_byte):
        packed |= grouped[..., position] << (bits * position)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Inverse of `pack`: `[..., bytes]` uint8 to `[..., bytes * 8 // bits]` uint8."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes: Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.flatten(-2)
