"""Read blocks of grids "e8" and "e8x1" on Hopper GPUs: words from a table of 1 KiB, the rotation by tensor
cores.

It computes what `decode.read` does and reads "e8" a quarter to a third faster: that kernel looks each
group of eight values up in a table of 1 MiB, and waits for the cache (docs/results.md). One warp reads 16
tokens a round. Of a channel's seven bits, first to last g3 g2 g1 g0 c2 c1 c0, a lane holds all values of
g3 g2 c2 c1 c0 and four lanes those of g1 g0, so nothing moves between lanes: a product of 16 by 16 sums over
g2 g1 g0 c0, of which tensor cores take operands and give results just so, additions over the other three.
"""

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma

from qvg_kernels.codecs.fitted.decode import FOLDED, KEY, VALUE, channel_numbers
from qvg_kernels.codecs.reading import (
    CODEBOOK_ROWS,
    TOKENS,
    BlockTable,
    DecodeTarget,
    Tiles,
    address,
    decode_arguments,
    head_row_of,
    tile_of,
)
from qvg_kernels.quant import numbers
from qvg_kernels.rope.kernels import MATRICES, NONE, ROTARY, multiply_quads
from qvg_kernels.rope.tables import by_fours
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import GROUPED, SLICED, Kernel

HEAD_DIM = gl.constexpr(128)
GROUPS = gl.constexpr(16)
"""Codewords of a token."""

WARP_TOKENS = gl.constexpr(16)
"""Tokens of a warp and a round: the rows of an operand."""

SHAPED_WARPS = 4
"""Warps of a program whose rows are multiplied by a matrix: those of one instruction of the tensor cores."""


@gluon.constexpr_function
def _product_layout(warps):
    return gl.NVMMADistributedLayout([2, 0], [warps, 1], [16, 8])


@gluon.constexpr_function
def _rows_of(width, lane, warps):
    """Layout of `[16 * warps, width]` where a lane holds `lane` neighbours, as all of this file's are."""
    inner = [[0, 2**bit] for bit in range(lane.bit_length() - 1)]
    outer = [[0, 4 * lane], [0, 8 * lane], [8, 0]]
    lanes = [[0, lane], [0, 2 * lane], [1, 0], [2, 0], [4, 0]]
    by_warp = [[16 << bit, 0] for bit in range(warps.bit_length() - 1)]
    return gl.DistributedLinearLayout(inner + outer, lanes, by_warp, [], [16 * warps, width])


@gluon.constexpr_function
def _words_of(warps):
    """Layout of `[16 * warps, GROUPS, 8]`, the same as that of the channels."""
    return gl.DistributedLinearLayout(
        [[0, 0, 1], [0, 0, 2], [0, 0, 4], [0, 4, 0], [0, 8, 0], [8, 0, 0]],
        [[0, 1, 0], [0, 2, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0]],
        [[16 << bit, 0, 0] for bit in range(warps.bit_length() - 1)],
        [],
        [16 * warps, 16, 8],
    )


_SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
"""Of the product with a matrix, `[64, 128]`."""

_MATRIX = gl.constexpr(gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0]))
_MATRIX_ROOM = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))


@gluon.jit
def _unshifted(codes, words):
    """Signed entries 2, 6 and 10 of codewords, float16 `[TILE_S, GROUPS, 8]`.

    A float16 2, 6 or 10 ends in a byte of zeros: its first byte is looked up by one instruction, four at a
    time. The last sign is the parity of the other seven, and of the pattern.

    Args:
        codes: `[TILE_S, GROUPS, 8]` int32, the same along the last axis.
        words: Likewise, the entries of `numbers.pattern_words`.
    """
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 signs, other, low, high, sizes, negatives;
        shr.u32 signs, $4, 8;
        and.b32 signs, signs, 127;
        popc.b32 other, signs;
        shl.b32 other, other, 7;
        and.b32 other, other, 128;
        or.b32 signs, signs, other;
        shl.b32 other, signs, 15;
        or.b32 signs, signs, other;
        mov.b32 sizes, 0x00494640;
        mov.b32 negatives, 0x00c9c6c0;
        prmt.b32 low, sizes, negatives, $12;
        shr.u32 high, $12, 16;
        prmt.b32 high, sizes, negatives, high;
        prmt.b32 $0, low, 0, 0x1404;
        prmt.b32 $1, low, 0, 0x3424;
        prmt.b32 $2, high, 0, 0x1404;
        prmt.b32 $3, high, 0, 0x3424;
        shl.b32 other, signs, 15;
        lop3.b32 $0, $0, other, 0x80008000, 0x78;
        shl.b32 other, signs, 13;
        lop3.b32 $1, $1, other, 0x80008000, 0x78;
        shl.b32 other, signs, 11;
        lop3.b32 $2, $2, other, 0x80008000, 0x78;
        shl.b32 other, signs, 9;
        lop3.b32 $3, $3, other, 0x80008000, 0x78;
        }
        """,
        "=r,=r,=r,=r," + "r," * 15 + "r",
        [codes, words],
        dtype=gl.float16,
        is_pure=True,
        pack=8,
    )


@gluon.jit
def _levels(words):
    """Levels of grid "e8x1", float16 `[TILE_S, GROUPS, 8]`, by the first byte of each as in `_unshifted`.

    Args:
        words: `[TILE_S, GROUPS, 8]` int32, entries of `numbers.root_words`, the same along the last axis.
    """
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 low, high, sizes, negatives;
        mov.b32 sizes, 0x42403c00;
        mov.b32 negatives, 0xc2c0bc00;
        prmt.b32 low, sizes, negatives, $4;
        shr.u32 high, $4, 16;
        prmt.b32 high, sizes, negatives, high;
        prmt.b32 $0, low, 0, 0x1404;
        prmt.b32 $1, low, 0, 0x3424;
        prmt.b32 $2, high, 0, 0x1404;
        prmt.b32 $3, high, 0, 0x3424;
        }
        """,
        "=r,=r,=r,=r," + "r," * 7 + "r",
        [words],
        dtype=gl.float16,
        is_pure=True,
        pack=8,
    )


@gluon.jit
def _half_of_int8(values):
    """Float16 of int8, four at a time: the last byte of float16 from 1024 to 1279 counts ones."""
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 bytes, bias;
        xor.b32 bytes, $2, 0x80808080;
        mov.b32 bias, 0x64806480;
        prmt.b32 $0, bytes, 0x64646464, 0x4140;
        prmt.b32 $1, bytes, 0x64646464, 0x4342;
        sub.f16x2 $0, $0, bias;
        sub.f16x2 $1, $1, bias;
        }
        """,
        "=r,=r,r",
        [values],
        dtype=gl.float16,
        is_pure=True,
        pack=4,
    )


@gluon.jit
def _int8_of(values):
    """Nearest int8 of float16, at most 127 either way, four at a time: `numbers.int8_of`."""
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 low, high, most, least, integers;
        mov.b32 most, 0x57f057f0;
        mov.b32 least, 0xd7f0d7f0;
        mov.b32 integers, 0x66006600;
        min.f16x2 low, $1, most;
        min.f16x2 high, $2, most;
        max.f16x2 low, low, least;
        max.f16x2 high, high, least;
        add.f16x2 low, low, integers;
        add.f16x2 high, high, integers;
        prmt.b32 $0, low, high, 0x6420;
        }
        """,
        "=r,r,r",
        [values],
        dtype=gl.int8,
        is_pure=True,
        pack=4,
    )


@gluon.jit
def _product(values, matrix, WARPS: gl.constexpr):
    """`[TILE_S, 2, 4, 2]` values, summed over g2, g1 g0 and c0."""
    TILE_S: gl.constexpr = WARP_TOKENS * WARPS
    layout: gl.constexpr = _product_layout(WARPS)
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    left = gl.convert_layout(gl.reshape(values, [TILE_S, 16]), operand, assert_trivial=True)
    summed = mma_v2(left, matrix, gl.zeros([TILE_S, 16], gl.float16, layout))
    return gl.reshape(summed, [TILE_S, 2, 4, 2])


@gluon.jit
def _over_groups(values, matrix, WARPS: gl.constexpr):
    """`[TILE_S, g2, g1 g0, c0, g3]` values, summed over all of them."""
    low, high = gl.split(values)
    return gl.join(_product(low + high, matrix, WARPS), _product(low - high, matrix, WARPS))


@gluon.jit
def _apart(values, WARPS: gl.constexpr):
    """`[TILE_S, GROUPS, 8]` values as `[TILE_S, g2, g1 g0, c0, g3, c1, c2]`."""
    rows = gl.reshape(values, [WARP_TOKENS * WARPS, 2, 2, 4, 2, 2, 2])
    return gl.permute(rows, [0, 2, 3, 6, 1, 5, 4])


@gluon.jit
def _hadamard(levels, shifts, matrix, WARPS: gl.constexpr):
    """Rows of levels times the Sylvester matrix of ones, `[TILE_S, HEAD_DIM]`.

    Args:
        levels: `[TILE_S, GROUPS, 8]` float16, not shifted.
        shifts: Likewise, four times the shift of each group; `None` without shifts.
        matrix: The Sylvester matrix of 16.
    """
    low, high = gl.split(_apart(levels, WARPS))
    low_sum, high_sum = gl.split(low + high)
    low_rest, high_rest = gl.split(low - high)
    total = low_sum + high_sum
    if shifts is not None:
        # What is added to all eight of a group is left in one sum over c2 and c1.
        shift, _ = gl.split(_apart(shifts, WARPS))
        shift, _ = gl.split(shift)
        total += shift
    first = gl.join(_over_groups(total, matrix, WARPS), _over_groups(low_sum - high_sum, matrix, WARPS))
    second = gl.join(
        _over_groups(low_rest + high_rest, matrix, WARPS), _over_groups(low_rest - high_rest, matrix, WARPS)
    )
    together = gl.permute(gl.join(first, second), [0, 4, 1, 2, 6, 5, 3])
    layout: gl.constexpr = _rows_of(128, 8, WARPS)
    rows = gl.reshape(together, [WARP_TOKENS * WARPS, HEAD_DIM])
    return gl.convert_layout(rows, layout, assert_trivial=True)


@gluon.jit
def _sylvester(WARPS: gl.constexpr):
    """The matrix of 16, as the second operand of a product."""
    layout: gl.constexpr = gl.DotOperandLayout(1, _product_layout(WARPS), 2)
    row = gl.arange(0, 16, gl.SliceLayout(1, layout))[:, None]
    both = row & gl.arange(0, 16, gl.SliceLayout(0, layout))[None, :]
    both = both ^ (both >> 2)
    return gl.where(((both ^ (both >> 1)) & 1) == 0, 1.0, -1.0).to(gl.float16)


@gluon.jit
def _rotated(values, tokens, slots, times, spaces, tokens_per_frame, WARPS: gl.constexpr):
    """`kernels.rotate` by what `kernels.rotation_of` finds; `times` and `spaces` lie as `tables.by_fours` has
    them.
    """
    TILE_S: gl.constexpr = WARP_TOKENS * WARPS
    layout: gl.constexpr = _rows_of(128, 8, WARPS)
    pairs: gl.constexpr = _rows_of(64, 4, WARPS)
    frame = tokens // tokens_per_frame
    channels = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))[None, :]
    time = times + (gl.load(slots + frame) * HEAD_DIM)[:, None] + channels
    space = spaces + ((tokens - frame * tokens_per_frame) * HEAD_DIM)[:, None] + channels
    is_time = channels // 8 * 4 + channels % 4 < HEAD_DIM // 2 - 2 * (HEAD_DIM // 6)
    turn = gl.where(is_time, gl.load(time), gl.load(space))
    cosine, sine = gl.split(gl.permute(gl.reshape(turn, [TILE_S, 16, 2, 4]), [0, 1, 3, 2]))
    cosine = gl.convert_layout(gl.reshape(cosine, [TILE_S, 64]), pairs, assert_trivial=True)
    sine = gl.convert_layout(gl.reshape(sine, [TILE_S, 64]), pairs, assert_trivial=True)
    even, odd = gl.split(gl.reshape(values, [TILE_S, 64, 2]))
    even = gl.convert_layout(even, pairs, assert_trivial=True)
    odd = gl.convert_layout(odd, pairs, assert_trivial=True)
    both = gl.join(even * cosine - odd * sine, even * sine + odd * cosine)
    return gl.convert_layout(gl.reshape(both, [TILE_S, HEAD_DIM]), layout, assert_trivial=True)


@gluon.jit
def _multiplied(values, tokens, slots, matrices, tokens_per_frame, WARPS: gl.constexpr):
    """`kernels.multiply` in this file's layouts."""
    TILE_S: gl.constexpr = WARP_TOKENS * WARPS
    layout: gl.constexpr = _rows_of(128, 8, WARPS)
    quads: gl.constexpr = _rows_of(32, 2, WARPS)
    tokens = gl.convert_layout(tokens, gl.SliceLayout(1, quads), assert_trivial=True)
    matrix = matrices + gl.load(slots + tokens // tokens_per_frame)[:, None] * 16
    zero_two, one_three = gl.split(gl.reshape(values.to(gl.float32), [TILE_S, 32, 2, 2]))
    zero, two = gl.split(zero_two)
    one, three = gl.split(one_three)
    zero = gl.convert_layout(zero, quads, assert_trivial=True)
    one = gl.convert_layout(one, quads, assert_trivial=True)
    two = gl.convert_layout(two, quads, assert_trivial=True)
    three = gl.convert_layout(three, quads, assert_trivial=True)
    both = gl.reshape(multiply_quads(matrix, zero, one, two, three), [TILE_S, HEAD_DIM])
    return gl.convert_layout(both, layout, assert_trivial=True)


@gluon.jit
def _tokens(start, source, count, TILE_S: gl.constexpr, layout: gl.constexpr):
    """Numbers of a round's tokens in their block; those beyond the last are the first of the tile."""
    index = start + gl.arange(0, TILE_S, layout)
    return source + gl.where(index < count, index, 0)


@gluon.jit
def _codes(codes, tokens, groups, WARPS: gl.constexpr):
    """Codes of a round, `[TILE_S, GROUPS]`, in the layout of words without its last axis."""
    layout: gl.constexpr = _rows_of(16, 1, WARPS)
    words: gl.constexpr = _words_of(WARPS)
    tokens = gl.convert_layout(tokens, gl.SliceLayout(1, layout), assert_trivial=True)
    loaded = gl.load(codes + tokens[:, None] * GROUPS + groups)
    return gl.convert_layout(loaded, gl.SliceLayout(2, words), assert_trivial=True)


@gluon.jit
def _reordered(values, axis: gl.constexpr):
    """Channels along an axis of `[., HEAD_DIM]` as an instruction has them: g3 g2 c2 c1 g1 g0 c0; or back."""
    rows: gl.constexpr = values.shape[1 - axis]
    if axis == 1:
        bits = gl.permute(gl.reshape(values, [rows, 2, 2, 2, 2, 2, 2, 2]), [0, 1, 2, 5, 6, 3, 4, 7])
    else:
        bits = gl.permute(gl.reshape(values, [2, 2, 2, 2, 2, 2, 2, rows]), [0, 1, 4, 5, 2, 3, 6, 7])
    return gl.reshape(bits, values.shape)


@gluon.jit
def _matrix_of(row, index: gl.constexpr, head_row):
    """The head's matrix in shared memory, float16, its channels reordered."""
    channel = gl.arange(0, HEAD_DIM, gl.SliceLayout(1, _MATRIX))[:, None]
    other = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, _MATRIX))[None, :]
    matrix = address(row, index, gl.bfloat16, head_row * HEAD_DIM * HEAD_DIM)
    values = gl.load(matrix + channel * HEAD_DIM + other).to(gl.float32).to(gl.float16)
    values = _reordered(_reordered(values, 1), 0)
    room = gl.allocate_shared_memory(gl.float16, [HEAD_DIM, HEAD_DIM], _MATRIX_ROOM, values)
    fence_async_shared()
    return room


@gluon.jit
def _shaped(values, matrix):
    """Float16 values `[64, HEAD_DIM]` times the matrix in shared memory; nothing moves between lanes."""
    operand: gl.constexpr = gl.DotOperandLayout(0, _SUMS, 2)
    left = gl.convert_layout(_reordered(values, 1), operand, assert_trivial=True)
    moved = warpgroup_mma(left, matrix, gl.zeros([64, HEAD_DIM], gl.float32, _SUMS), use_acc=False)
    return gl.convert_layout(_reordered(moved.to(gl.float16), 1), _rows_of(128, 8, 4), assert_trivial=True)


@gluon.jit(do_not_specialize=GROUPED, do_not_specialize_on_alignment=SLICED)
def _decode_lattice(
    blocks, tiles, slots, slots_pitch, units, smoothing, target, pitch, words, flips,
    tables, spaces, tokens_per_frame, total_heads, first_head, heads,
    GRID: gl.constexpr, HAS_CODEBOOK: gl.constexpr, SHAPING: gl.constexpr, WARPS: gl.constexpr,
    BLOCK_COLUMNS: gl.constexpr, PLACEMENT: gl.constexpr,
):  # fmt: skip
    TILE_S: gl.constexpr = WARP_TOKENS * WARPS
    layout: gl.constexpr = _rows_of(128, 8, WARPS)
    words_layout: gl.constexpr = _words_of(WARPS)
    codes_layout: gl.constexpr = _rows_of(16, 1, WARPS)
    block, row, source, target_row, count, fill = tile_of(blocks, tiles, BLOCK_COLUMNS, False)
    head, head_row = head_row_of(heads, total_heads, first_head)
    total = gl.load(row + TOKENS)
    slot = slots + block * slots_pitch if PLACEMENT != NONE else slots
    unit = gl.load(units + head)
    groups = gl.arange(0, GROUPS, gl.SliceLayout(0, codes_layout))[None, :]
    channels = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, layout))
    code_type: gl.constexpr = gl.uint16 if GRID == "e8" else gl.uint8
    codes = address(row, 0, code_type, head_row * total * GROUPS)
    scales = address(row, 1, gl.uint8, head_row * total)
    weight, offset, step, scale_unit = channel_numbers(
        row, head, head_row, unit, smoothing, channels, HAS_CODEBOOK, SHAPING, HEAD_DIM
    )
    phase = gl.load(address(row, 5, gl.uint8, head_row))
    if HAS_CODEBOOK:
        ids = address(row, 6, gl.uint8, head_row * total)
        table = address(row, 7, gl.int8, head_row * gl.load(row + CODEBOOK_ROWS) * HEAD_DIM)
    matrix = _sylvester(WARPS)
    if SHAPING != 0 and SHAPING != FOLDED:
        shape = _matrix_of(row, 9 if HAS_CODEBOOK else 6, head_row)
    none = gl.zeros([TILE_S, GROUPS, 8], gl.int32, words_layout)
    tokens_of: gl.constexpr = gl.SliceLayout(1, layout)
    # What a round reads first is asked for in the round before.
    upcoming = _tokens(0, source, count, TILE_S, tokens_of)
    next_codes = _codes(codes, upcoming, groups, WARPS)
    next_scales = gl.load(scales + upcoming)
    if HAS_CODEBOOK:
        next_ids = gl.load(ids + upcoming)
    for start in range(0, fill, TILE_S):
        tokens, code, scale = upcoming, next_codes.to(gl.int32), next_scales
        if HAS_CODEBOOK:
            centroid = gl.load(table + (next_ids.to(gl.int32) * HEAD_DIM)[:, None] + channels[None, :])
        upcoming = _tokens(start + TILE_S, source, count, TILE_S, tokens_of)
        next_codes = _codes(codes, upcoming, groups, WARPS)
        next_scales = gl.load(scales + upcoming)
        if HAS_CODEBOOK:
            next_ids = gl.load(ids + upcoming)

        word = none + gl.load(words + (code & 255))[:, :, None]
        if GRID == "e8":
            code = none + code[:, :, None]
            shifts = gl.where(code < 32768, 4.0, -4.0).to(gl.float16)
            residual = _hadamard(_unshifted(code, word), shifts, matrix, WARPS)
        else:
            residual = _hadamard(_levels(word), None, matrix, WARPS)
        pattern = numbers.token_pattern(tokens, phase)
        flip = gl.load(flips + (pattern * HEAD_DIM)[:, None] + channels[None, :])
        scale = (numbers.e4m3_value(scale) * scale_unit).to(gl.float16)
        values = numbers.flip_signs(residual, flip) * scale[:, None]
        if SHAPING == 0:
            values *= weight
        if SHAPING != KEY:
            values += offset
        if HAS_CODEBOOK:
            values += _half_of_int8(centroid) * step
        if SHAPING != 0 and SHAPING != FOLDED:
            values = _shaped(values, shape) * weight
        if SHAPING == KEY:
            values += offset
        if PLACEMENT == ROTARY:
            values = _rotated(values, tokens, slot, tables, spaces, tokens_per_frame, WARPS)
        if PLACEMENT == MATRICES:
            values = _multiplied(values, tokens, slot, tables, tokens_per_frame, WARPS)
        if target.dtype.element_ty == gl.int8:
            stored = _int8_of(values.to(gl.float16))
        else:
            stored = (values.to(gl.float32) * unit).to(target.dtype.element_ty)
        index = start + gl.arange(0, TILE_S, tokens_of)
        at = target + (head.to(gl.int64) * pitch + target_row + index)[:, None] * HEAD_DIM + channels[None, :]
        gl.store(at, stored, mask=(index < fill)[:, None])


_decode_lattice_kernel = Kernel(_decode_lattice)


def decode_lattice(blocks: BlockTable, tiles: Tiles, target: DecodeTarget, settings: tuple[Any, ...]) -> None:
    """Decode some heads of a pass, as `BlockReader.decode` has it; `settings` are the reader's."""
    grid, _, has_codebook, shaping = settings
    placement, device = blocks.placement, blocks.rows.device
    tables, spaces = placement.tables, placement.spaces
    if tables is not None and spaces is not None:
        tables, spaces = by_fours(tables), by_fours(spaces)
    warps = SHAPED_WARPS if shaping in (KEY.value, VALUE.value) else 1
    arguments = decode_arguments(blocks, tiles, target) | {"tables": tables, "spaces": spaces}
    words = numbers.pattern_words if grid == "e8" else numbers.root_words
    _decode_lattice_kernel[(len(tiles.table), blocks.batch * target.heads)](
        **arguments, words=words(device), flips=numbers.sign_flips(128, device),
        GRID=grid, HAS_CODEBOOK=has_codebook, SHAPING=shaping, WARPS=warps, num_warps=warps,
        maxnreg=launch.LATTICE_REGISTERS,
    )  # fmt: skip
