"""Small unsigned codes packed into bytes, so that any tokens can be read without the others.

Invariant: `unpack(pack(codes)) == codes`, and no two rows share a byte.
"""

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


def pack_trits(trits: Tensor) -> Tensor:
    """Pack codes 0, 1 and 2, five rows a byte: 1.6 bits each.

    Args:
        trits: `[S, D]` uint8.

    Returns:
        `[ceil(S / 5), D]` uint8; row `5 * r + i` of a channel is digit i (weight `3 ** i`) of that
        channel's byte in row r. Digits beyond the last row are 0.
    """
    rows, channels = trits.shape
    padded = torch.nn.functional.pad(trits, (0, 0, 0, -rows % 5))
    digits = padded.reshape(-1, 5, channels)
    packed = digits[:, 4]
    for place in (3, 2, 1, 0):
        packed = packed * 3 + digits[:, place]
    return packed


def unpack_trits(packed: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of what `pack_trits` packed, `[..., stop - start, D]` uint8."""
    first = start // 5
    rows = packed[..., first : -(-stop // 5), :].unsqueeze(-2)
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=packed.device).unsqueeze(-1)
    digits = torch.remainder(torch.div(rows, powers, rounding_mode="floor"), 3)
    return digits.flatten(-3, -2)[..., start - 5 * first : stop - 5 * first, :]
