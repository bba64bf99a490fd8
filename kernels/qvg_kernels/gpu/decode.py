"""Read spans of every packed scheme into the workspace, placed: bf16, or e4m3 with transposed values.

One launch reads any number of spans: a table of addresses names their tensors, a table of tiles says which
tokens go where. The torch reference is each codec's `decode`, followed by the placement.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qvg_kernels.gpu import numbers
from qvg_kernels.gpu.place import NONE, place

# Columns of the table of entries: tokens of the span, rows of its table, then addresses of its tensors.
TOKENS, TABLE_ROWS, TENSORS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# Columns of the table of tiles; tokens from `COUNT` to `FILL` become zeros, which the masked keys of the last
# block stand on.
ENTRY, SOURCE, TARGET, COUNT, FILL = (tl.constexpr(column) for column in range(5))
TILE_COLUMNS = tl.constexpr(5)


@triton.jit
def address(row, index: tl.constexpr, dtype: tl.constexpr, offset):
    """Pointer into tensor `index` of an entry; torch allocates at multiples of 512 bytes."""
    return tl.multiple_of(tl.load(row + TENSORS + index).to(tl.pointer_type(dtype)), 16) + offset


@triton.jit
def _store(
    values, entry, tokens, is_token, tile_row, slots, slots_pitch, cosines, sines, rows, columns, units,
    target, pitch, head, PLACEMENT: tl.constexpr, IS_FP8: tl.constexpr, IS_TRANSPOSED: tl.constexpr,
    IS_ALIGNED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Place float32 values `[BLOCK_S, HEAD_DIM]` and store them for head `head` of the workspace."""
    if PLACEMENT != NONE:
        slots += entry * slots_pitch
        values = place(values, tokens, slots, cosines, sines, rows, columns, PLACEMENT, HEAD_DIM, BLOCK_S)
    first, fill = tl.load(tile_row + TARGET), tl.load(tile_row + FILL)
    if IS_ALIGNED:
        first, fill = tl.multiple_of(first, 8), tl.multiple_of(fill, 8)
    index = tl.arange(0, BLOCK_S)
    values = tl.where(is_token[:, None], values, 0.0)
    if IS_FP8:
        values = tl.clamp(values * (1.0 / tl.load(units + head)), -448.0, 448.0)
    stored = values.to(target.dtype.element_ty)
    channels = tl.arange(0, HEAD_DIM)
    is_filled = index < fill
    if IS_TRANSPOSED:
        at = target + (head.to(tl.int64) * HEAD_DIM + channels[:, None]) * pitch + (first + index)[None, :]
        tl.store(at, tl.trans(stored), mask=is_filled[None, :])
    else:
        at = target + (head.to(tl.int64) * pitch + first + index)[:, None] * HEAD_DIM + channels[None, :]
        tl.store(at, stored, mask=is_filled[:, None])


@triton.jit
def _lattice_levels(codes, tokens, words, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr):
    """Levels `[BLOCK_S, HEAD_DIM]` int32 of grid "e8"; `qvg_kernels.lattice.unpack` is the reference.

    Args:
        codes: Pointer to the head's uint16 codes, `HEAD_DIM // 8` a token.
        words: Pointer to `numbers.lattice_patterns`.
    """
    GROUPS: tl.constexpr = HEAD_DIM // 8
    code = tl.load(codes + tokens[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]).to(tl.int32)
    word = tl.load(words + (code & 255))
    negative = (code >> 8) & 127
    # The parity of the seven signs, by folding.
    folded = negative ^ (negative >> 4)
    folded = folded ^ (folded >> 2)
    folded = (folded ^ (folded >> 1)) & 1
    negative = negative | ((folded ^ (word >> 16)) & 1) << 7
    shift = 1 - 2 * (code >> 15)
    place_in_group = tl.arange(0, 8)[None, None, :]
    size = 4 * ((word[:, :, None] >> (2 * place_in_group)) & 3) + 2
    sign = (negative[:, :, None] >> place_in_group) & 1
    levels = (size ^ -sign) + sign + shift[:, :, None]
    return tl.reshape(levels, [BLOCK_S, HEAD_DIM])


@triton.jit
def _unpacked(
    codes, tokens, BITS: tl.constexpr, PITCH: tl.constexpr, WIDTH: tl.constexpr, BLOCK_S: tl.constexpr
):
    """Codes `[BLOCK_S, WIDTH]` int32 of BITS bits; rows are PITCH bytes apart."""
    EACH: tl.constexpr = 8 // BITS
    at = codes + tokens[:, None] * PITCH + tl.arange(0, WIDTH // EACH)[None, :]
    bytes_ = tl.load(at).to(tl.int32)
    shifts = BITS * tl.arange(0, EACH)[None, None, :]
    return tl.reshape((bytes_[:, :, None] >> shifts) & ((1 << BITS) - 1), [BLOCK_S, WIDTH])


@triton.jit
def _scalar_levels(codes, tokens, words, GRID: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr):
    """Levels `[BLOCK_S, HEAD_DIM]` int32 of grids of single values; `ScalarGrid.read` is the reference."""
    if GRID == "trit":
        packed = tl.load(codes + (tokens // 5)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])
        digit = tokens - tokens // 5 * 5
        power = tl.where(digit == 0, 1, tl.where(digit == 1, 3, tl.where(digit == 2, 9, 27)))
        power = tl.where(digit == 4, 81, power)
        return packed.to(tl.int32) // power[:, None] % 3 - 1
    elif GRID == "int2":
        return 2 * _unpacked(codes, tokens, 2, HEAD_DIM // 4, HEAD_DIM, BLOCK_S) - 3
    elif GRID == "int3":
        PITCH: tl.constexpr = 3 * HEAD_DIM // 8
        low = _unpacked(codes, tokens, 2, PITCH, HEAD_DIM, BLOCK_S)
        high = _unpacked(codes + HEAD_DIM // 4, tokens, 1, PITCH, HEAD_DIM, BLOCK_S)
        return tl.load(words + (low | (high << 2)))
    else:
        return tl.load(words + _unpacked(codes, tokens, 4, HEAD_DIM // 2, HEAD_DIM, BLOCK_S))


@triton.jit
def fitted_decode_kernel(
    entries, tiles, slots, slots_pitch, units, target, pitch, words, hadamard, flips, cosines, sines,
    total_heads, first_head, heads, rows, columns,
    GRID: tl.constexpr, ROW_BYTES: tl.constexpr, HAS_TABLE: tl.constexpr, ENTRY_COLUMNS: tl.constexpr,
    PLACEMENT: tl.constexpr, IS_FP8: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_ALIGNED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    tile_row = tiles + tl.program_id(0) * TILE_COLUMNS
    entry = tl.load(tile_row + ENTRY)
    row = entries + entry * ENTRY_COLUMNS
    index, channels = tl.arange(0, BLOCK_S), tl.arange(0, HEAD_DIM)
    is_token = index < tl.load(tile_row + COUNT)
    tokens = tl.load(tile_row + SOURCE) + tl.where(is_token, index, 0)
    total = tl.load(row + TOKENS)
    head_row = (head // heads).to(tl.int64) * total_heads + first_head + head % heads

    if GRID == "e8":
        codes = address(row, 0, tl.uint16, head_row * total * (HEAD_DIM // 8))
        levels = _lattice_levels(codes, tokens, words, HEAD_DIM, BLOCK_S)
    else:
        code_rows = tl.cdiv(total, 5) if GRID == "trit" else total
        codes = address(row, 0, tl.uint8, head_row * code_rows * ROW_BYTES)
        levels = _scalar_levels(codes, tokens, words, GRID, HEAD_DIM, BLOCK_S)
    # Levels are small integers and the matrix is of ones, so the product is exact.
    signs = tl.load(hadamard + channels[:, None] * HEAD_DIM + channels[None, :])
    residual = tl.dot(levels.to(tl.float16), signs)

    unit_row = address(row, 4, tl.float32, head_row * 3)
    scale_bits = tl.load(address(row, 1, tl.uint8, head_row * total) + tokens)
    scale = numbers.e4m3_value(scale_bits) * tl.load(unit_row)
    weight_bits = tl.load(address(row, 2, tl.uint8, head_row * HEAD_DIM) + channels)
    weight = numbers.e4m3_value(weight_bits) * tl.load(unit_row + 1)
    offset = tl.load(address(row, 3, tl.float32, head_row * HEAD_DIM) + channels)
    phase = tl.load(address(row, 5, tl.uint8, head_row))
    pattern = numbers.token_pattern(tokens, phase)
    flip = tl.load(flips + pattern[:, None] * HEAD_DIM + channels[None, :])
    ROOT: tl.constexpr = HEAD_DIM**-0.5
    values = numbers.flip_signs(residual * (scale * ROOT)[:, None], flip)
    if HAS_TABLE:
        step_bits = tl.load(address(row, 8, tl.uint8, head_row * HEAD_DIM) + channels)
        step = numbers.e4m3_value(step_bits) * tl.load(unit_row + 2)
        ids = tl.load(address(row, 6, tl.uint8, head_row * total) + tokens).to(tl.int32)
        table = address(row, 7, tl.int8, head_row * tl.load(row + TABLE_ROWS) * HEAD_DIM)
        centroid = tl.load(table + ids[:, None] * HEAD_DIM + channels[None, :])
        values += centroid.to(tl.float32) * step[None, :]
    values = offset[None, :] + values * weight[None, :]
    _store(
        values, entry, tokens, is_token, tile_row, slots, slots_pitch, cosines, sines, rows, columns, units,
        target, pitch, head, PLACEMENT, IS_FP8, IS_TRANSPOSED, IS_ALIGNED, HEAD_DIM, BLOCK_S,
    )  # fmt: skip


@triton.jit
def _block_scales(scales, tokens, BLOCKS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr):
    """Each channel's scale, `[BLOCK_S, HEAD_DIM]` float32, from one e4m3 number a block of channels."""
    bits = tl.load(scales + tokens[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :])
    scale = numbers.e4m3_value(bits)
    wide = tl.broadcast_to(scale[:, :, None], [BLOCK_S, BLOCKS, HEAD_DIM // BLOCKS])
    return tl.reshape(wide, [BLOCK_S, HEAD_DIM])


@triton.jit
def qvg_decode_kernel(
    entries, tiles, slots, slots_pitch, units, target, pitch, cosines, sines,
    total_heads, first_head, heads, rows, columns,
    BITS: tl.constexpr, STAGES: tl.constexpr, BLOCKS: tl.constexpr, ENTRY_COLUMNS: tl.constexpr,
    PLACEMENT: tl.constexpr, IS_FP8: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_ALIGNED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    tile_row = tiles + tl.program_id(0) * TILE_COLUMNS
    entry = tl.load(tile_row + ENTRY)
    row = entries + entry * ENTRY_COLUMNS
    index, channels = tl.arange(0, BLOCK_S), tl.arange(0, HEAD_DIM)
    is_token = index < tl.load(tile_row + COUNT)
    tokens = tl.load(tile_row + SOURCE) + tl.where(is_token, index, 0)
    total = tl.load(row + TOKENS)
    head_row = (head // heads).to(tl.int64) * total_heads + first_head + head % heads

    PITCH: tl.constexpr = HEAD_DIM * BITS // 8
    codes = address(row, 0, tl.uint8, head_row * total * PITCH)
    codes = _unpacked(codes, tokens, BITS, PITCH, HEAD_DIM, BLOCK_S)
    LARGEST: tl.constexpr = 2 ** (BITS - 1) - 1
    values = (codes - LARGEST).to(tl.float32)
    scales = address(row, 1, tl.uint8, head_row * total * BLOCKS)
    values *= _block_scales(scales, tokens, BLOCKS, HEAD_DIM, BLOCK_S)
    table_rows = tl.load(row + TABLE_ROWS)
    for stage in tl.static_range(STAGES):
        stage_row = head_row * STAGES + stage
        ids = tl.load(address(row, 2, tl.uint8, stage_row * total) + tokens).to(tl.int32)
        table = address(row, 3, tl.bfloat16, stage_row * table_rows * HEAD_DIM)
        values += tl.load(table + ids[:, None] * HEAD_DIM + channels[None, :]).to(tl.float32)
    _store(
        values, entry, tokens, is_token, tile_row, slots, slots_pitch, cosines, sines, rows, columns, units,
        target, pitch, head, PLACEMENT, IS_FP8, IS_TRANSPOSED, IS_ALIGNED, HEAD_DIM, BLOCK_S,
    )  # fmt: skip


@triton.jit
def asym_decode_kernel(
    entries, tiles, slots, slots_pitch, units, target, pitch, cosines, sines,
    total_heads, first_head, heads, rows, columns,
    BITS: tl.constexpr, BLOCKS: tl.constexpr, ENTRY_COLUMNS: tl.constexpr, PLACEMENT: tl.constexpr,
    IS_FP8: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_ALIGNED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    tile_row = tiles + tl.program_id(0) * TILE_COLUMNS
    entry = tl.load(tile_row + ENTRY)
    row = entries + entry * ENTRY_COLUMNS
    index, channels = tl.arange(0, BLOCK_S), tl.arange(0, HEAD_DIM)
    is_token = index < tl.load(tile_row + COUNT)
    tokens = tl.load(tile_row + SOURCE) + tl.where(is_token, index, 0)
    total = tl.load(row + TOKENS)
    head_row = (head // heads).to(tl.int64) * total_heads + first_head + head % heads

    PITCH: tl.constexpr = HEAD_DIM * BITS // 8
    codes = address(row, 0, tl.uint8, head_row * total * PITCH)
    codes = _unpacked(codes, tokens, BITS, PITCH, HEAD_DIM, BLOCK_S)
    unit_row = address(row, 5, tl.float32, head_row * 2)
    first_scale = head_row * total * BLOCKS
    step = _block_scales(address(row, 1, tl.uint8, first_scale), tokens, BLOCKS, HEAD_DIM, BLOCK_S)
    low = _block_scales(address(row, 2, tl.uint8, first_scale), tokens, BLOCKS, HEAD_DIM, BLOCK_S)
    values = low * tl.load(unit_row + 1) + step * tl.load(unit_row) * codes.to(tl.float32)
    ids = tl.load(address(row, 3, tl.uint8, head_row * total) + tokens).to(tl.int32)
    table = address(row, 4, tl.bfloat16, head_row * tl.load(row + TABLE_ROWS) * HEAD_DIM)
    values += tl.load(table + ids[:, None] * HEAD_DIM + channels[None, :]).to(tl.float32)
    _store(
        values, entry, tokens, is_token, tile_row, slots, slots_pitch, cosines, sines, rows, columns, units,
        target, pitch, head, PLACEMENT, IS_FP8, IS_TRANSPOSED, IS_ALIGNED, HEAD_DIM, BLOCK_S,
    )  # fmt: skip


@triton.jit
def plain_decode_kernel(
    entries, tiles, slots, slots_pitch, units, target, pitch, cosines, sines,
    total_heads, first_head, heads, rows, columns,
    ENTRY_COLUMNS: tl.constexpr, PLACEMENT: tl.constexpr,
    IS_FP8: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_ALIGNED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    tile_row = tiles + tl.program_id(0) * TILE_COLUMNS
    entry = tl.load(tile_row + ENTRY)
    row = entries + entry * ENTRY_COLUMNS
    index, channels = tl.arange(0, BLOCK_S), tl.arange(0, HEAD_DIM)
    is_token = index < tl.load(tile_row + COUNT)
    tokens = tl.load(tile_row + SOURCE) + tl.where(is_token, index, 0)
    total = tl.load(row + TOKENS)
    head_row = (head // heads).to(tl.int64) * total_heads + first_head + head % heads
    source = address(row, 0, tl.bfloat16, head_row * total * HEAD_DIM)
    values = tl.load(source + tokens[:, None] * HEAD_DIM + channels[None, :]).to(tl.float32)
    _store(
        values, entry, tokens, is_token, tile_row, slots, slots_pitch, cosines, sines, rows, columns, units,
        target, pitch, head, PLACEMENT, IS_FP8, IS_TRANSPOSED, IS_ALIGNED, HEAD_DIM, BLOCK_S,
    )  # fmt: skip
