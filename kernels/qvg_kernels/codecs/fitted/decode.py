"""Blocks of the scheme "fitted" decoded by a kernel: `FittedCodec.decode` is the torch reference."""

import triton
import triton.language as tl

from qvg_kernels.codecs.reading import CODEBOOK_ROWS, address, unpacked
from qvg_kernels.quant import numbers

KEY, VALUE, FOLDED = (tl.constexpr(kind) for kind in (1, 2, 3))
"""How errors are shaped: by a product of what is decoded, with the offset beside it or within; or values are
left as they are before it, since it has the same effect on what attention makes of them.
"""


@triton.jit
def _lattice_sums(codes, tokens, words, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    """Levels of grids "e8" and "e8x1", rotated among each eight: `[TILE_S, HEAD_DIM]` float16.

    Args:
        codes: Pointer to the head's uint16 or uint8 codes, `HEAD_DIM // 8` a token.
        words: Pointer to `numbers.word_sums`.
    """
    GROUPS: tl.constexpr = HEAD_DIM // 8
    # [TILE_S, GROUPS], then [TILE_S, GROUPS, 8].
    code = tl.load(codes + tokens[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]).to(tl.int32)
    sums = tl.load(words + code[:, :, None] * 8 + tl.arange(0, 8)[None, None, :])
    return tl.reshape(sums, [TILE_S, HEAD_DIM])


@triton.jit
def _hadamard(values, ROUNDS_DONE: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    """Rows `[TILE_S, HEAD_DIM]` times the Sylvester matrix of ones, by sums and differences.

    A product on tensor cores computes as much in less instructions, but takes shared memory and waits; it was
    slower (docs/results.md).

    Args:
        ROUNDS_DONE: Of the channel's last bits: 0 or 3.
    """
    BITS: tl.constexpr = 6 if HEAD_DIM == 64 else 7 if HEAD_DIM == 128 else 8
    FIRST: tl.constexpr = 1 if ROUNDS_DONE == 0 else ROUNDS_DONE
    for _ in tl.static_range(BITS - FIRST):
        # The channel's first bit is summed over and becomes the last but one. Its last bit stays: two
        # neighbouring channels lie in one register, and instructions take both.
        pairs = tl.permute(tl.reshape(values, [TILE_S, 2, HEAD_DIM // 4, 2]), [0, 2, 3, 1])
        low, high = tl.split(pairs)
        values = tl.permute(tl.join(low + high, low - high), [0, 1, 3, 2])
        values = tl.reshape(values, [TILE_S, HEAD_DIM])
    # Bits that no round above has taken are still before those that one has.
    LEFT: tl.constexpr = 2 ** (FIRST - 1)
    values = tl.permute(tl.reshape(values, [TILE_S, LEFT, HEAD_DIM // LEFT // 2, 2]), [0, 2, 1, 3])
    values = tl.reshape(values, [TILE_S, HEAD_DIM])
    if ROUNDS_DONE == 0:
        low, high = tl.split(tl.reshape(values, [TILE_S, HEAD_DIM // 2, 2]))
        values = tl.reshape(tl.join(low + high, low - high), [TILE_S, HEAD_DIM])
    return values


@triton.jit
def _scalar_levels(codes, tokens, words, GRID: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    """Levels `[TILE_S, HEAD_DIM]` float16 of grids of single values: `ScalarGrid.read`."""
    if GRID == "trit":
        packed = tl.load(codes + (tokens // 5)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])
        digit = tokens - tokens // 5 * 5
        power = tl.where(digit == 0, 1, tl.where(digit == 1, 3, tl.where(digit == 2, 9, 27)))
        power = tl.where(digit == 4, 81, power)
        return numbers.half_of(packed.to(tl.int32) // power[:, None] % 3 - 1)
    elif GRID == "int2":
        return numbers.half_of(2 * unpacked(codes, tokens, 2, HEAD_DIM // 4, HEAD_DIM, TILE_S) - 3)
    elif GRID == "int3":
        PITCH: tl.constexpr = 3 * HEAD_DIM // 8
        low = unpacked(codes, tokens, 2, PITCH, HEAD_DIM, TILE_S)
        high = unpacked(codes + HEAD_DIM // 4, tokens, 1, PITCH, HEAD_DIM, TILE_S)
        return numbers.half_of(tl.load(words + (low | (high << 2))))
    else:
        levels = tl.load(words + unpacked(codes, tokens, 4, HEAD_DIM // 2, HEAD_DIM, TILE_S))
        return numbers.half_of(levels)


@triton.jit
def channel_numbers(
    row, head, head_row, unit, smoothing, channels,
    HAS_CODEBOOK: tl.constexpr, SHAPING: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Weights, offsets and steps of a head's channels, float16 `[1, HEAD_DIM]`, and the unit of its scales.

    All in units of what is stored. Without a table there are no steps.

    Args:
        SHAPING: 0 where errors are not shaped. Else steps and scales are those before the matrix, and weights
            what its results are multiplied by.
    """
    unit_row = address(row, 4, tl.float32, head_row * 3)
    offset = tl.load(address(row, 3, tl.float32, head_row * HEAD_DIM) + channels) / unit
    if SHAPING:
        # Ones in the layout of the channels.
        weight_unit, weight = 1.0 / unit, tl.where(channels >= 0, 1.0, 0.0)
    else:
        weight_unit = tl.load(unit_row + 1) / unit
        weight = numbers.e4m3_value(tl.load(address(row, 2, tl.uint8, head_row * HEAD_DIM) + channels))
    step = weight
    if smoothing is not None:
        inverse = 1.0 / tl.load(smoothing + head * HEAD_DIM + channels)
        weight *= inverse
        if SHAPING == 0 or SHAPING == KEY:
            offset *= inverse
        if SHAPING == 0:
            step = weight
    if HAS_CODEBOOK:
        bits = tl.load(address(row, 8, tl.uint8, head_row * HEAD_DIM) + channels)
        step *= numbers.e4m3_value(bits) * (tl.load(unit_row + 2) * weight_unit)
    # The levels' product with a matrix of ones is the root of the head's size too large.
    scale_unit = tl.load(unit_row) * weight_unit * HEAD_DIM**-0.5
    weight, offset, step = weight.to(tl.float16), offset.to(tl.float16), step.to(tl.float16)
    return weight[None, :], offset[None, :], step[None, :], scale_unit


@triton.jit
def begin(
    row, head, head_row, total, unit, smoothing, words, flips, SETTINGS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    GRID: tl.constexpr = SETTINGS[0]
    HAS_CODEBOOK: tl.constexpr = SETTINGS[2]
    channels = tl.arange(0, HEAD_DIM)
    if GRID == "e8" or GRID == "e8x1":
        code_type: tl.constexpr = tl.uint16 if GRID == "e8" else tl.uint8
        codes = address(row, 0, code_type, head_row * total * (HEAD_DIM // 8))
    else:
        code_rows = tl.cdiv(total, 5) if GRID == "trit" else total
        codes = address(row, 0, tl.uint8, head_row * code_rows * SETTINGS[1])
    scales = address(row, 1, tl.uint8, head_row * total)
    weight, offset, step, scale_unit = channel_numbers(
        row, head, head_row, unit, smoothing, channels, HAS_CODEBOOK, SETTINGS[3], HEAD_DIM
    )
    phase = tl.load(address(row, 5, tl.uint8, head_row))
    ids, codebook = scales, scales
    if HAS_CODEBOOK:
        ids = address(row, 6, tl.uint8, head_row * total)
        codebook = address(row, 7, tl.int8, head_row * tl.load(row + CODEBOOK_ROWS) * HEAD_DIM)
    matrix = words
    if SETTINGS[3]:
        # The last of the tensors.
        matrix = address(row, 9 if HAS_CODEBOOK else 6, tl.bfloat16, head_row * HEAD_DIM * HEAD_DIM)
    return codes, scales, weight, offset, step, scale_unit, phase, ids, codebook, words, flips, matrix


@triton.jit
def read(state, tokens, SETTINGS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    """Levels turned back, under their signs, scales and weights; then offset and centroid."""
    codes, scales, weight, offset, step, scale_unit, phase, ids, codebook, words, flips, matrix = state
    GRID: tl.constexpr = SETTINGS[0]
    SHAPING: tl.constexpr = SETTINGS[3]
    channels = tl.arange(0, HEAD_DIM)
    # Sums of levels are integers below 2**11, exact in float16. What follows needs no more than its 11 bits
    # either: results are rounded to the 8 of bf16 or the 4 of e4m3. All are [TILE_S, HEAD_DIM].
    if GRID == "e8" or GRID == "e8x1":
        sums = _lattice_sums(codes, tokens, words, HEAD_DIM, TILE_S)
        residual = _hadamard(sums, 3, HEAD_DIM, TILE_S)
    else:
        levels = _scalar_levels(codes, tokens, words, GRID, HEAD_DIM, TILE_S)
        residual = _hadamard(levels, 0, HEAD_DIM, TILE_S)
    scale = numbers.e4m3_value(tl.load(scales + tokens)) * scale_unit
    pattern = numbers.token_pattern(tokens, phase)
    # [TILE_S, HEAD_DIM]
    flip = tl.load(flips + pattern[:, None] * HEAD_DIM + channels[None, :])
    values = numbers.flip_signs(residual, flip) * scale.to(tl.float16)[:, None]
    if SHAPING == 0:
        values *= weight
    if SHAPING != KEY:
        values += offset
    if SETTINGS[2]:
        centroid = tl.load(ids + tokens).to(tl.int32)
        centroid = tl.load(codebook + centroid[:, None] * HEAD_DIM + channels[None, :])
        values += numbers.half_of(centroid.to(tl.int16)) * step
    if SHAPING != 0 and SHAPING != FOLDED:
        values = _shaped(values, matrix, HEAD_DIM, TILE_S) * weight
        if SHAPING == KEY:
            values += offset
    return values


@triton.jit
def _shaped(values, matrix, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    """Float16 values `[TILE_S, HEAD_DIM]` times the head's symmetric matrix, in float16 again."""
    channels = tl.arange(0, HEAD_DIM)
    if HEAD_DIM <= 128:
        rows = tl.load(matrix + channels[:, None] * HEAD_DIM + channels[None, :])
        moved = tl.dot(values, rows.to(tl.float32).to(tl.float16))
    else:
        # The whole matrix has no room beside the values.
        halves = tl.permute(tl.reshape(values, [TILE_S, 2, HEAD_DIM // 2]), [0, 2, 1])
        low, high = tl.split(halves)
        half = tl.arange(0, HEAD_DIM // 2)[:, None] * HEAD_DIM + channels[None, :]
        moved = tl.dot(low, tl.load(matrix + half).to(tl.float32).to(tl.float16))
        rows = tl.load(matrix + HEAD_DIM * HEAD_DIM // 2 + half)
        moved = tl.dot(high, rows.to(tl.float32).to(tl.float16), moved)
    return moved.to(tl.float16)
