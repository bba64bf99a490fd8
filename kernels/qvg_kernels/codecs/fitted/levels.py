"""Nearest levels in registers: those of single values, and the nearest word of two codebooks cut from E8.

`grids.ScalarGrid` and the functions `nearest` and `pack` of `lattice` and `roots` are the torch references. A
group's eight neighbouring values are eight tensors, so that each thread holds whole groups and a group's
codes make one word. In the lattice's search a magnitude carries the number of its value in the lowest three
bits of its float32 pattern: that orders equal ones, and thresholds take the place of an ordering of indices.
"""

import triton
import triton.language as tl

from qvg_kernels.quant.numbers import int_of

SIGN = tl.constexpr(0x80000000)
"""The sign of a float32."""

NEVER = tl.constexpr(0x7F800000)
"""A threshold that no finite magnitude reaches: infinity."""


@triton.jit
def _ordered(keys):
    """Eight int32 tensors, the largest first: a network of 19 exchanges (Batcher's odd-even merge sort)."""
    a, b, c, d, e, f, g, h = keys
    a, c = tl.maximum(a, c), tl.minimum(a, c)
    b, d = tl.maximum(b, d), tl.minimum(b, d)
    e, g = tl.maximum(e, g), tl.minimum(e, g)
    f, h = tl.maximum(f, h), tl.minimum(f, h)
    a, e = tl.maximum(a, e), tl.minimum(a, e)
    b, f = tl.maximum(b, f), tl.minimum(b, f)
    c, g = tl.maximum(c, g), tl.minimum(c, g)
    d, h = tl.maximum(d, h), tl.minimum(d, h)
    a, b = tl.maximum(a, b), tl.minimum(a, b)
    c, d = tl.maximum(c, d), tl.minimum(c, d)
    e, f = tl.maximum(e, f), tl.minimum(e, f)
    g, h = tl.maximum(g, h), tl.minimum(g, h)
    c, e = tl.maximum(c, e), tl.minimum(c, e)
    d, f = tl.maximum(d, f), tl.minimum(d, f)
    b, e = tl.maximum(b, e), tl.minimum(b, e)
    d, g = tl.maximum(d, g), tl.minimum(d, g)
    b, c = tl.maximum(b, c), tl.minimum(b, c)
    d, e = tl.maximum(d, e), tl.minimum(d, e)
    f, g = tl.maximum(f, g), tl.minimum(f, g)
    return a, b, c, d, e, f, g, h


@triton.jit
def _key(shifted, mask, PLACE: tl.constexpr):
    """Magnitude of value PLACE as an int32 that orders as magnitudes do, earlier values first."""
    return (shifted.to(tl.int32, bitcast=True) & mask) | (7 - PLACE)


@triton.jit
def _larger(score, threshold, other_score, other_threshold):
    """The better of two shapes: its score and its threshold."""
    is_other = other_score > score
    return tl.where(is_other, other_score, score), tl.where(is_other, other_threshold, threshold)


@triton.jit
def _search(values, shift, mask):
    """The best shape under one shift, 1.0 or -1.0.

    Returns:
        Its score: product with the magnitudes minus half its square, but for a constant. Keys of the least
        magnitudes whose entries are at least 6, and 10. The key whose sign flips, or -1.
    """
    keys = ()
    signs = tl.zeros_like(values[0]).to(tl.int32)
    for place in tl.static_range(8):
        signs ^= (values[place] - shift).to(tl.int32, bitcast=True)
        keys = keys + (_key(values[place] - shift, mask, place),)
    is_odd = signs < 0
    a, b, c, d, e, f, g, h = _ordered(keys)
    first = a.to(tl.float32, bitcast=True)
    least = h.to(tl.float32, bitcast=True)
    two = first + b.to(tl.float32, bitcast=True)
    three = two + c.to(tl.float32, bitcast=True)
    four = three + d.to(tl.float32, bitcast=True)
    six = four + e.to(tl.float32, bitcast=True) + f.to(tl.float32, bitcast=True)
    total = six + g.to(tl.float32, bitcast=True) + least
    # A 6 in place of a 2 adds 4 to a product and 16 to half the square; a 10 adds 8 and 48.
    even, even_threshold = _larger(tl.zeros_like(first), tl.zeros_like(a) + NEVER, 4 * two - 32, b)
    even, even_threshold = _larger(even, even_threshold, 4 * four - 64, d)
    even, even_threshold = _larger(even, even_threshold, 4 * six - 96, f)
    has_ten = 8 * first - 48 > even
    even = tl.maximum(even, 8 * first - 48)
    even_threshold = tl.where(has_ten, a, even_threshold)
    odd, odd_threshold = _larger(4 * first - 16, a, 4 * three - 48, c)
    odd_has_ten = 4 * (first + two) - 64 > odd
    odd = tl.maximum(odd, 4 * (first + two) - 64)
    odd_threshold = tl.where(odd_has_ten, b, odd_threshold)
    # Shapes with an odd number of 6 want an odd number of negative values; else the least one flips.
    penalty = 4 * least
    even -= tl.where(is_odd, penalty, 0.0)
    odd -= tl.where(is_odd, 0.0, penalty)
    takes_odd = odd > even
    threshold = tl.where(takes_odd, odd_threshold, even_threshold)
    has_ten = (takes_odd & odd_has_ten) | (has_ten & ~takes_odd)
    flipped = tl.where(takes_odd ^ is_odd, h, -1)
    return 2 * total + tl.maximum(even, odd), threshold, tl.where(has_ten, a, NEVER), flipped


@triton.jit
def nearest_words(values, codes, num_shifts):
    """Nearest codewords.

    Args:
        values: Eight float32 tensors `[TILE_S, GROUPS]`, in quarters.
        codes: Pointer to `lattice.pattern_codes`.
        num_shifts: 2.

    Returns:
        Levels, eight float32 tensors, and each group's two bytes, int32.
    """
    total = values[0]
    for place in tl.static_range(1, 8):
        total += values[place]
    best = tl.zeros_like(total) + float("-inf")
    threshold = tl.zeros_like(total).to(tl.int32)
    ten, flipped, is_down = threshold, threshold, total < total
    # Magnitudes but for their last three bits: 0x7FFFFFF8, which the compiler must not know, since it makes
    # two steps of each key where both numbers of it are constants.
    mask = 0x7FFFFFFA - num_shifts
    # A loop, so that the search is compiled once; that its end is not known keeps it one.
    for down in tl.range(0, num_shifts, num_stages=1):
        shift = 1.0 - 2.0 * down
        score, its_threshold, its_ten, its_flipped = _search(values, shift, mask)
        # The squares of the shifted values differ by twice their sum from those of the values.
        score += total * shift
        is_better = score > best
        best = tl.where(is_better, score, best)
        threshold = tl.where(is_better, its_threshold, threshold)
        ten = tl.where(is_better, its_ten, ten)
        flipped = tl.where(is_better, its_flipped, flipped)
        is_down = is_better & (down > 0)
    shift = tl.where(is_down, -1.0, 1.0)
    negatives = tl.zeros_like(threshold).to(tl.uint32)
    for place in tl.static_range(7, -1, -1):
        negatives = (negatives << 1) | ((values[place] - shift).to(tl.uint32, bitcast=True) >> 31)
    # A key ends in its value's number, counted from the last.
    negatives ^= tl.where(flipped < 0, 0, 128 >> (flipped & 7)).to(tl.uint32)
    threshold, ten = threshold.to(tl.float32, bitcast=True), ten.to(tl.float32, bitcast=True)
    levels = ()
    index = tl.zeros_like(total)
    power: tl.constexpr = (1, 3, 9, 27, 81, 243, 729, 2187)
    for place in tl.static_range(8):
        key = _key(values[place] - shift, mask, place).to(tl.float32, bitcast=True)
        digit = (key >= threshold).to(tl.float32) + (key >= ten).to(tl.float32)
        index += digit * power[place]
        size = (2.0 + 4.0 * digit).to(tl.uint32, bitcast=True)
        sign = (negatives << (31 - place)) & SIGN
        levels = levels + ((size | sign).to(tl.float32, bitcast=True) + shift,)
    signs = (negatives.to(tl.int32) & 127) | (is_down.to(tl.int32) << 7)
    return levels, tl.load(codes + int_of(index)).to(tl.int32) | (signs << 8)


@triton.jit
def nearest_roots(values):
    """Nearest words of grid "e8x1" to eight float32 tensors `[TILE_S, GROUPS]` in units: levels and codes."""
    none = tl.zeros_like(values[0])
    total, least, top, second = none, tl.abs(values[0]), none - 1.0, none - 1.0
    zero = none.to(tl.int32)
    least_at, top_at, second_at, negatives = zero, zero, zero, zero
    for place in tl.static_range(8):
        size = tl.abs(values[place])
        total += size
        negatives |= (values[place] < 0).to(tl.int32) << place
        is_least, is_top, is_second = size < least, size > top, size > second
        least = tl.minimum(size, least)
        least_at = tl.where(is_least, place, least_at)
        second = tl.where(is_top, top, tl.where(is_second, size, second))
        second_at = tl.where(is_top, top_at, tl.where(is_second, place, second_at))
        top = tl.maximum(size, top)
        top_at = tl.where(is_top, place, top_at)
    parity = negatives ^ (negatives >> 4)
    parity ^= parity >> 2
    parity = (parity ^ (parity >> 1)) & 1
    all_score = total - 2.0 * least * parity.to(tl.float32) - 4.0
    pair_score = 2.0 * (top + second) - 4.0
    axis_score = 3.0 * top - 4.5
    is_axis = axis_score > tl.maximum(all_score, pair_score)
    is_pair = (pair_score > all_score) & ~is_axis
    signs = negatives ^ tl.where(is_axis | is_pair, 0, parity << least_at)
    # One bit for each value that is not zero, and their size.
    placed = tl.where(is_axis, 1 << top_at, tl.where(is_pair, (1 << top_at) | (1 << second_at), 255))
    size = tl.where(is_axis, 3.0, tl.where(is_pair, 2.0, 1.0))
    levels = ()
    for place in tl.static_range(8):
        level = tl.where((signs >> place) & 1 != 0, -size, size)
        levels = levels + (tl.where((placed >> place) & 1 != 0, level, 0.0),)
    low, high = tl.minimum(top_at, second_at), tl.maximum(top_at, second_at)
    pair = ((low * (15 - low)) >> 1) + high - low - 1
    pair_code = 128 + 4 * pair + 2 * ((signs >> high) & 1) + ((signs >> low) & 1)
    axis_code = 240 + 2 * top_at + ((signs >> top_at) & 1)
    return levels, tl.where(is_axis, axis_code, tl.where(is_pair, pair_code, signs & 127))


@triton.jit
def add_products(total, left, right):
    """`[TILE_S, GROUPS]`, and the products of two rows of eight such tensors."""
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
