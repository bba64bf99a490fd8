"""A two-bit codebook for eight values at once, cut from the lattice E8; it beats any grid of single values.

A codeword is a pattern of eight positive half-integers, a sign for each with the parity that the pattern
asks for,
and a shift of all eight by a quarter up or down. In quarters it is eight odd integers between -11 and 11.
Invariant: the patterns are whole sets of permutations, so the nearest codeword is found from the sorted
magnitudes alone.

Source: the E8P codebook of QuIP# (arXiv 2402.04396), with 28 patterns of six 3/2 and two 1/2 in place of
the 29 that it takes from the next shell, which no sorting could find.
"""

from functools import cache
from itertools import product

import torch
from torch import Tensor

STEP = 0.2375
"""One quarter in standard deviations of the values; a unit of 0.95 deviations loses least on a Gaussian."""

_NUM_THREES = (0, 1, 2, 3, 4, 0, 1, 6)
_NUM_FIVES = (0, 0, 0, 0, 0, 1, 1, 0)
"""Shapes of pattern: how many of the eight are 3/2 and 5/2; all others are 1/2."""


def patterns() -> list[tuple[int, ...]]:
    """All 255 patterns in twice their value (1, 3 and 5), in the order of their codes: lexicographic."""
    shapes = set(zip(_NUM_THREES, _NUM_FIVES, strict=True))
    return [
        pattern for pattern in product((1, 3, 5), repeat=8) if (pattern.count(3), pattern.count(5)) in shapes
    ]


def nearest(values: Tensor) -> Tensor:
    """Nearest codewords.

    Args:
        values: `[S, D]` float32 in quarters.

    Returns:
        `[S, D]` float32 odd integers between -11 and 11; of two equally near shifts, upwards.
    """
    groups = values.reshape(-1, 8)
    up, up_distance = _nearest_shifted(groups, 1.0)
    down, down_distance = _nearest_shifted(groups, -1.0)
    return torch.where((up_distance <= down_distance).unsqueeze(-1), up, down).reshape(values.shape)


@cache
def _shapes(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes of pattern: `[8, 8]` entries in quarters, largest first, and `[8]` numbers of 3/2 and 5/2."""
    rows = [
        [10.0] * fives + [6.0] * threes + [2.0] * (8 - fives - threes)
        for threes, fives in zip(_NUM_THREES, _NUM_FIVES, strict=True)
    ]
    threes, fives = torch.tensor([_NUM_THREES, _NUM_FIVES], device=device)
    return torch.tensor(rows, device=device), threes, fives


def _nearest_shifted(groups: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """Nearest codewords `[N, 8]` with one shift, and half their squared distance, `[N]`.

    Of a pattern's orderings the nearest has its large entries where the magnitudes are largest. If the signs
    then have the wrong parity, the cheapest repair is the smallest magnitude, whose entry is always 2
    quarters.
    """
    entries, threes, fives = _shapes(groups.device)
    shifted = groups - shift
    negative = shifted < 0
    magnitude, order = shifted.abs().sort(stable=True, dim=-1, descending=True)
    # Inner products of the sorted magnitudes with every shape: 2 everywhere, 4 more for 3/2, 8 for 5/2.
    sums = torch.cat([torch.zeros_like(magnitude[:, :1]), magnitude.cumsum(-1)], -1)
    products = 2 * sums[:, 8:] + 4 * sums[:, threes + fives] + 4 * sums[:, fives]
    mismatch = (threes % 2 == 1) != (negative.sum(-1, keepdim=True) % 2 == 1)
    products = products - torch.where(mismatch, 4 * magnitude[:, 7:], 0.0)
    best, shape = (products - 0.5 * entries.square().sum(-1)).max(-1)
    signs = torch.where(negative.gather(-1, order), -1.0, 1.0)
    repair = mismatch.gather(-1, shape.unsqueeze(-1))
    signs[:, 7:] = torch.where(repair, -signs[:, 7:], signs[:, 7:])
    nearest_words = torch.empty_like(groups).scatter_(-1, order, entries[shape] * signs) + shift
    return nearest_words, 0.5 * shifted.square().sum(-1) - best


@cache
def pattern_codes(device: torch.device) -> Tensor:
    """`[3 ** 8]` uint8: code of the pattern whose base-3 digits are 0 for 1/2, 1 for 3/2 and 2 for 5/2."""
    table = torch.zeros(3**8, dtype=torch.uint8)
    for code, pattern in enumerate(patterns()):
        table[sum((entry // 2) * 3**place for place, entry in enumerate(pattern))] = code
    return table.to(device)


def pack(levels: Tensor) -> Tensor:
    """Pack `[S, D]` codewords in quarters into `[S, D // 4]` uint8, two bytes for eight values.

    The first byte is the pattern's code. Of the second, bit i says that value i is negative before the
    shift, for the first seven; bit 7 says that the shift is downwards.
    """
    groups = levels.reshape(*levels.shape[:-1], -1, 8)
    # A value is +-2, +-6 or +-10 quarters before the shift, so its remainder by 4 tells the shift.
    down = torch.remainder(groups[..., 0], 4) == 1
    unshifted = groups - torch.where(down, -1.0, 1.0).unsqueeze(-1)
    digits = ((unshifted.abs() - 2) / 4).long()
    powers = 3 ** torch.arange(8, device=levels.device)
    code = pattern_codes(levels.device)[(digits * powers).sum(-1)]
    negative = (unshifted[..., :7] < 0).long()
    bits = (negative << torch.arange(7, device=levels.device)).sum(-1) + (down.long() << 7)
    return torch.stack([code, bits.to(torch.uint8)], -1).flatten(-2)


@cache
def codewords(device: torch.device) -> Tensor:
    """`[65536]` int64, each the eight int8 quarters of the codeword with that little-endian two-byte code."""
    entries = torch.zeros(256, 8, dtype=torch.int64)
    for code, pattern in enumerate(patterns()):
        entries[code] = 2 * torch.tensor(pattern)
    bits = torch.arange(256)
    negative = (bits.unsqueeze(-1) >> torch.arange(7)) & 1
    wants_odd = (entries // 4).sum(-1) % 2
    # Entries are 2, 6 or 10: 6 is the one whose half-integer changes the parity.
    last = (negative.sum(-1).unsqueeze(-1) + wants_odd) % 2
    signs = torch.cat([negative.unsqueeze(1).expand(-1, 256, -1), last.unsqueeze(-1)], -1)
    shift = 1 - 2 * (bits >> 7)
    words = entries * (1 - 2 * signs) + shift[:, None, None]
    return words.to(torch.int8).reshape(-1, 8).contiguous().view(torch.int64).flatten().to(device)


def unpack(codes: Tensor) -> Tensor:
    """Inverse of `pack`: `[..., D // 4]` uint8 to `[..., D]` float32 quarters."""
    index = codes[..., 0::2].int() + (codes[..., 1::2].int() << 8)
    words = codewords(codes.device)[index]
    return words.view(torch.int8).float()
