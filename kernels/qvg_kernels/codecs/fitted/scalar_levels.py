"""The grids of single values, in registers: `grids.ScalarGrid` is the torch reference.

A group's eight neighbouring channels are eight tensors, as for the lattice, so that its codes make one word.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_products(total, left, right):
    """`[BLOCK_S, GROUPS]`, and the products of two rows of eight such tensors."""
    for place in tl.static_range(8):
        total += left[place] * right[place]
    return total


@triton.jit
def nearest_levels(values, LEVELS: tl.constexpr, NUM_LEVELS: tl.constexpr):
    """Nearest levels, and their indices, of eight tensors."""
    levels, indices = (), ()
    for place in tl.static_range(8):
        value = values[place]
        index = tl.zeros_like(value).to(tl.int32)
        level = tl.zeros_like(value) + LEVELS[0]
        for bound in tl.static_range(NUM_LEVELS - 1):
            is_above = value > (LEVELS[bound] + LEVELS[bound + 1]) / 2
            index += is_above.to(tl.int32)
            level += tl.where(is_above, LEVELS[bound + 1] - LEVELS[bound], 0.0)
        levels, indices = levels + (level,), indices + (index,)
    return levels, indices


@triton.jit
def joined(indices, BITS: tl.constexpr):
    """The eight indices of a group in one int32, the first in the lowest of BITS bits each."""
    word = indices[0]
    for place in tl.static_range(1, 8):
        word |= indices[place] << (BITS * place)
    return word
