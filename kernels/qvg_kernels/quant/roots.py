"""A one-bit codebook for eight values at once: the 240 shortest vectors of the lattice E8 and the 16 axes.

Words are all ±1 with an even number of minus signs, two ±2 among zeros, or one ±3. Invariant: every set is
closed under permutations, so the nearest word is found from sums, the least and the two largest magnitudes.
"""

from functools import cache
from itertools import combinations

import torch
from torch import Tensor

STEP = 0.8
"""One unit in standard deviations of the values; from 0.7 to 0.9 a Gaussian loses less than 0.005 dB more."""


@cache
def codewords(device: torch.device) -> Tensor:
    """`[256, 8]` float32 integers: the word of each code."""
    table = torch.zeros(256, 8)
    code = torch.arange(128)
    negative = code.unsqueeze(-1) >> torch.arange(7) & 1
    table[:128] = 1.0 - 2.0 * torch.cat([negative, negative.sum(-1, keepdim=True) % 2], -1)
    for pair, (first, second) in enumerate(combinations(range(8), 2)):
        signs = torch.arange(4)
        rows = 128 + 4 * pair + signs
        table[rows, first] = 2.0 - 4.0 * (signs % 2)
        table[rows, second] = 2.0 - 4.0 * (signs // 2)
    axis = torch.arange(8)
    table[240 + 2 * axis, axis] = 3.0
    table[241 + 2 * axis, axis] = -3.0
    return table.to(device)


def nearest(values: Tensor) -> Tensor:
    """Nearest words of `[S, D]` float32 values in units, `[S, D]`.

    Of equally near ones all ±1 come before two ±2 before one ±3; of equal magnitudes the first is the
    largest, and the least.
    """
    return codewords(values.device)[_codes(values.reshape(-1, 8))].reshape(values.shape)


def _codes(groups: Tensor) -> Tensor:
    """Codes `[N]` of the nearest words of `[N, 8]` values: the largest `<value, word> - |word|**2 / 2`."""
    magnitude, negative = groups.abs(), (groups < 0).long()
    least, largest = magnitude.argmin(-1, keepdim=True), magnitude.argmax(-1, keepdim=True)
    second = magnitude.scatter(-1, largest, -1.0).argmax(-1, keepdim=True)
    least_size, top, next_top = (magnitude.gather(-1, at).squeeze(-1) for at in (least, largest, second))
    is_odd = negative.sum(-1) % 2
    # The cheapest repair of the parity is the smallest magnitude.
    signs = magnitude.sum(-1) - 2 * least_size * is_odd - 4
    best = torch.stack([signs, 2 * (top + next_top) - 4, 3 * top - 4.5]).argmax(0)
    flipped = negative.scatter_add(-1, least, is_odd.unsqueeze(-1)) % 2
    sign_code = (flipped[:, :7] << torch.arange(7, device=groups.device)).sum(-1)
    low, high = torch.minimum(largest, second), torch.maximum(largest, second)
    pair = (low * (15 - low) // 2 + high - low - 1).squeeze(-1)
    low_sign, high_sign, axis_sign = (negative.gather(-1, at).squeeze(-1) for at in (low, high, largest))
    pair_code = 128 + 4 * pair + 2 * high_sign + low_sign
    axis_code = 240 + 2 * largest.squeeze(-1) + axis_sign
    return torch.stack([sign_code, pair_code, axis_code]).gather(0, best.unsqueeze(0)).squeeze(0)


def pack(levels: Tensor) -> Tensor:
    """Pack `[S, D]` words into `[S, D // 8]` uint8, a byte for eight values."""
    return _codes(levels.reshape(-1, 8)).to(torch.uint8).reshape(*levels.shape[:-1], -1)


def unpack(codes: Tensor) -> Tensor:
    """Inverse of `pack`: `[..., D // 8]` uint8 to `[..., D]` float32."""
    return codewords(codes.device)[codes.long()].flatten(-2)
