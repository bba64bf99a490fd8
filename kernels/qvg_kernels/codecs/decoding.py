"""Read spans of every packed scheme into the workspace, placed: bf16, int8 keys, e4m3 values.

One launch reads any number of spans: a table of addresses names their tensors, a table of tiles says which
stretches of tokens go where. e4m3 values are stored transposed. The torch reference is each codec's `decode`,
followed by the placement.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qvg_kernels.attention.kernels import stored_row
from qvg_kernels.quant import numbers
from qvg_kernels.rope.kernels import MATRICES, NONE, ROTARY, multiply, rotate, rotation_of
from qvg_kernels.runtime.warmup import GROUPED, SLICED, kernel

# Columns of the table of entries: tokens of the span, rows of its table, then addresses of its tensors.
TOKENS, TABLE_ROWS, TENSORS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# Columns of the table of tiles. From COUNT to FILL the first token is stored again: attention masks these
# keys in its last block, but needs finite values.
ENTRY, SOURCE, TARGET, COUNT, FILL = (tl.constexpr(column) for column in range(5))
TILE_COLUMNS = tl.constexpr(5)


@triton.jit
def address(row, index: tl.constexpr, dtype: tl.constexpr, offset):
    """Pointer into tensor `index` of an entry; torch allocates at multiples of 512 bytes."""
    return tl.multiple_of(tl.load(row + TENSORS + index).to(tl.pointer_type(dtype)), 16) + offset


@triton.jit
def stretch_of(entries, tiles, ENTRY_COLUMNS: tl.constexpr, IS_ALIGNED: tl.constexpr):
    """This program's row of tiles: number and row of its entry, source, target, count, fill."""
    tile = tiles + tl.program_id(0) * TILE_COLUMNS
    entry, source, count = tl.load(tile + ENTRY), tl.load(tile + SOURCE), tl.load(tile + COUNT)
    target, fill = tl.load(tile + TARGET), tl.load(tile + FILL)
    if IS_ALIGNED:
        target, fill = tl.multiple_of(target, 8), tl.multiple_of(fill, 8)
    return entry, entries + entry * ENTRY_COLUMNS, source, target, count, fill


@triton.jit
def head_row_of(heads, total_heads, first_head):
    """This program's head among those of the workspace, and among those of the span."""
    head = tl.program_id(1)
    return head, (head // heads).to(tl.int64) * total_heads + first_head + head % heads


@triton.jit
def _store(
    values, tokens, index, target_row, fill, slots, tables, spaces, tokens_per_frame, unit, target,
    pitch, head, PLACEMENT: tl.constexpr, IS_SCALED: tl.constexpr, IS_8BIT: tl.constexpr,
    IS_TRANSPOSED: tl.constexpr, IS_REORDERED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Place values `[BLOCK_S, HEAD_DIM]` and store them for head `head` of the workspace.

    Args:
        values: Float32, or, if they are IS_SCALED, float16 in units.
        index: `[BLOCK_S]` numbers of the tokens in the stretch.
    """
    if PLACEMENT == ROTARY:
        cosine, sine = rotation_of(slots, tokens, tables, spaces, tokens_per_frame, HEAD_DIM)
        values = rotate(values, cosine, sine, HEAD_DIM, BLOCK_S)
    if PLACEMENT == MATRICES:
        values = multiply(values.to(tl.float32), tokens, slots, tables, tokens_per_frame, HEAD_DIM, BLOCK_S)
    if IS_SCALED and not IS_8BIT:
        values = values.to(tl.float32) * unit
    if IS_8BIT and not IS_SCALED:
        values = values * (1.0 / unit)
    if target.dtype.element_ty == tl.int8:
        stored = numbers.int8_of(values)
    else:
        # Rounding to e4m3 saturates.
        stored = values.to(target.dtype.element_ty)
    rows, channels = target_row + index, tl.arange(0, HEAD_DIM)
    is_filled = index < fill
    if IS_TRANSPOSED:
        at = target + (head.to(tl.int64) * HEAD_DIM + channels[:, None]) * pitch + rows[None, :]
        tl.store(at, tl.trans(stored), mask=is_filled[None, :])
    else:
        rows = stored_row(rows) if IS_REORDERED else rows
        at = target + (head.to(tl.int64) * pitch + rows)[:, None] * HEAD_DIM + channels[None, :]
        tl.store(at, stored, mask=is_filled[:, None])


@triton.jit
def _lattice_sums(codes, tokens, words, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr):
    """Levels of grid "e8", rotated among each eight: `[BLOCK_S, HEAD_DIM]` float16.

    Args:
        codes: Pointer to the head's uint16 codes, `HEAD_DIM // 8` a token.
        words: Pointer to `numbers.lattice_sums`.
    """
    GROUPS: tl.constexpr = HEAD_DIM // 8
    code = tl.load(codes + tokens[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]).to(tl.int32)
    sums = tl.load(words + code[:, :, None] * 8 + tl.arange(0, 8)[None, None, :])
    return tl.reshape(sums, [BLOCK_S, HEAD_DIM])


@triton.jit
def _hadamard(values, ROUNDS_DONE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr):
    """Rows `[BLOCK_S, HEAD_DIM]` times the Sylvester matrix of ones, by sums and differences.

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
        pairs = tl.permute(tl.reshape(values, [BLOCK_S, 2, HEAD_DIM // 4, 2]), [0, 2, 3, 1])
        low, high = tl.split(pairs)
        values = tl.permute(tl.join(low + high, low - high), [0, 1, 3, 2])
        values = tl.reshape(values, [BLOCK_S, HEAD_DIM])
    # Bits that no round above has taken are still before those that one has.
    LEFT: tl.constexpr = 2 ** (FIRST - 1)
    values = tl.permute(tl.reshape(values, [BLOCK_S, LEFT, HEAD_DIM // LEFT // 2, 2]), [0, 2, 1, 3])
    values = tl.reshape(values, [BLOCK_S, HEAD_DIM])
    if ROUNDS_DONE == 0:
        low, high = tl.split(tl.reshape(values, [BLOCK_S, HEAD_DIM // 2, 2]))
        values = tl.reshape(tl.join(low + high, low - high), [BLOCK_S, HEAD_DIM])
    return values


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
    """Levels `[BLOCK_S, HEAD_DIM]` float16 of grids of single values: `ScalarGrid.read`."""
    if GRID == "trit":
        packed = tl.load(codes + (tokens // 5)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])
        digit = tokens - tokens // 5 * 5
        power = tl.where(digit == 0, 1, tl.where(digit == 1, 3, tl.where(digit == 2, 9, 27)))
        power = tl.where(digit == 4, 81, power)
        return numbers.half_of(packed.to(tl.int32) // power[:, None] % 3 - 1)
    elif GRID == "int2":
        return numbers.half_of(2 * _unpacked(codes, tokens, 2, HEAD_DIM // 4, HEAD_DIM, BLOCK_S) - 3)
    elif GRID == "int3":
        PITCH: tl.constexpr = 3 * HEAD_DIM // 8
        low = _unpacked(codes, tokens, 2, PITCH, HEAD_DIM, BLOCK_S)
        high = _unpacked(codes + HEAD_DIM // 4, tokens, 1, PITCH, HEAD_DIM, BLOCK_S)
        return numbers.half_of(tl.load(words + (low | (high << 2))))
    else:
        levels = tl.load(words + _unpacked(codes, tokens, 4, HEAD_DIM // 2, HEAD_DIM, BLOCK_S))
        return numbers.half_of(levels)


@triton.jit
def channel_numbers(
    row, head, head_row, unit, factors, channels, HAS_TABLE: tl.constexpr, HEAD_DIM: tl.constexpr
):  # fmt: skip
    """Weights, offsets and steps of a head's channels, float16 `[1, HEAD_DIM]`, and the unit of its scales.

    All in units of what is stored. Without a table there are no steps.
    """
    unit_row = address(row, 4, tl.float32, head_row * 3)
    weight_unit = tl.load(unit_row + 1) / unit
    weight = numbers.e4m3_value(tl.load(address(row, 2, tl.uint8, head_row * HEAD_DIM) + channels))
    offset = tl.load(address(row, 3, tl.float32, head_row * HEAD_DIM) + channels) / unit
    if factors is not None:
        inverse = 1.0 / tl.load(factors + head * HEAD_DIM + channels)
        weight, offset = weight * inverse, offset * inverse
    step = weight
    if HAS_TABLE:
        step = numbers.e4m3_value(tl.load(address(row, 8, tl.uint8, head_row * HEAD_DIM) + channels))
        step = step * weight * (tl.load(unit_row + 2) * weight_unit)
    # The levels' product with a matrix of ones is the root of the head's size too large.
    scale_unit = tl.load(unit_row) * weight_unit * HEAD_DIM**-0.5
    weight, offset, step = weight.to(tl.float16), offset.to(tl.float16), step.to(tl.float16)
    return weight[None, :], offset[None, :], step[None, :], scale_unit


@kernel(do_not_specialize=GROUPED, do_not_specialize_on_alignment=SLICED)
def fitted_decode_kernel(
    entries, tiles, slots, slots_pitch, units, factors, target, pitch, words, flips,
    tables, spaces, tokens_per_frame, total_heads, first_head, heads,
    GRID: tl.constexpr, ROW_BYTES: tl.constexpr, HAS_TABLE: tl.constexpr, ENTRY_COLUMNS: tl.constexpr,
    PLACEMENT: tl.constexpr, IS_8BIT: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_REORDERED: tl.constexpr,
    IS_ALIGNED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    entry, row, source, target_row, count, fill = stretch_of(entries, tiles, ENTRY_COLUMNS, IS_ALIGNED)
    head, head_row = head_row_of(heads, total_heads, first_head)
    total = tl.load(row + TOKENS)
    slot = slots + entry * slots_pitch if PLACEMENT != NONE else slots
    # In units whatever is stored: float16 has no room for values of any size.
    unit = tl.load(units + head)
    channels = tl.arange(0, HEAD_DIM)
    if GRID == "e8":
        codes = address(row, 0, tl.uint16, head_row * total * (HEAD_DIM // 8))
    else:
        code_rows = tl.cdiv(total, 5) if GRID == "trit" else total
        codes = address(row, 0, tl.uint8, head_row * code_rows * ROW_BYTES)
    scales = address(row, 1, tl.uint8, head_row * total)
    weight, offset, step, scale_unit = channel_numbers(
        row, head, head_row, unit, factors, channels, HAS_TABLE, HEAD_DIM
    )
    phase = tl.load(address(row, 5, tl.uint8, head_row))
    if HAS_TABLE:
        ids = address(row, 6, tl.uint8, head_row * total)
        table = address(row, 7, tl.int8, head_row * tl.load(row + TABLE_ROWS) * HEAD_DIM)
    for start in tl.range(0, fill, BLOCK_S, num_stages=1):
        index = start + tl.arange(0, BLOCK_S)
        tokens = source + tl.where(index < count, index, 0)
        # Sums of levels are integers below 2**11, exact in float16. What follows needs no more than its 11
        # bits either: results are rounded to the 8 of bf16 or the 4 of e4m3.
        if GRID == "e8":
            sums = _lattice_sums(codes, tokens, words, HEAD_DIM, BLOCK_S)
            residual = _hadamard(sums, 3, HEAD_DIM, BLOCK_S)
        else:
            levels = _scalar_levels(codes, tokens, words, GRID, HEAD_DIM, BLOCK_S)
            residual = _hadamard(levels, 0, HEAD_DIM, BLOCK_S)
        scale = numbers.e4m3_value(tl.load(scales + tokens)) * scale_unit
        pattern = numbers.token_pattern(tokens, phase)
        flip = tl.load(flips + pattern[:, None] * HEAD_DIM + channels[None, :])
        values = numbers.flip_signs(residual, flip) * scale.to(tl.float16)[:, None] * weight + offset
        if HAS_TABLE:
            centroid = tl.load(ids + tokens).to(tl.int32)
            centroid = tl.load(table + centroid[:, None] * HEAD_DIM + channels[None, :])
            values += numbers.half_of(centroid.to(tl.int16)) * step
        _store(
            values, tokens, index, target_row, fill, slot, tables, spaces, tokens_per_frame, unit,
            target, pitch, head, PLACEMENT, True, IS_8BIT, IS_TRANSPOSED, IS_REORDERED, HEAD_DIM, BLOCK_S,
        )  # fmt: skip


@triton.jit
def _block_scales(scales, tokens, BLOCKS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr):
    """Each channel's scale, `[BLOCK_S, HEAD_DIM]` float32, from one e4m3 number a block of channels."""
    bits = tl.load(scales + tokens[:, None] * BLOCKS + tl.arange(0, BLOCKS)[None, :])
    scale = numbers.e4m3_value(bits)
    wide = tl.broadcast_to(scale[:, :, None], [BLOCK_S, BLOCKS, HEAD_DIM // BLOCKS])
    return tl.reshape(wide, [BLOCK_S, HEAD_DIM])


@kernel(do_not_specialize=GROUPED, do_not_specialize_on_alignment=SLICED)
def qvg_decode_kernel(
    entries, tiles, slots, slots_pitch, units, factors, target, pitch, tables, spaces,
    tokens_per_frame, total_heads, first_head, heads,
    BITS: tl.constexpr, STAGES: tl.constexpr, BLOCKS: tl.constexpr, ENTRY_COLUMNS: tl.constexpr,
    PLACEMENT: tl.constexpr, IS_8BIT: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_REORDERED: tl.constexpr,
    IS_ALIGNED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    entry, row, source, target_row, count, fill = stretch_of(entries, tiles, ENTRY_COLUMNS, IS_ALIGNED)
    head, head_row = head_row_of(heads, total_heads, first_head)
    total = tl.load(row + TOKENS)
    slot = slots + entry * slots_pitch if PLACEMENT != NONE else slots
    unit = tl.load(units + head) if IS_8BIT else 1.0
    channels = tl.arange(0, HEAD_DIM)
    PITCH: tl.constexpr = HEAD_DIM * BITS // 8
    LARGEST: tl.constexpr = 2 ** (BITS - 1) - 1
    codes = address(row, 0, tl.uint8, head_row * total * PITCH)
    scales = address(row, 1, tl.uint8, head_row * total * BLOCKS)
    table_rows = tl.load(row + TABLE_ROWS)
    for start in tl.range(0, fill, BLOCK_S, num_stages=1):
        index = start + tl.arange(0, BLOCK_S)
        tokens = source + tl.where(index < count, index, 0)
        values = numbers.float_of(_unpacked(codes, tokens, BITS, PITCH, HEAD_DIM, BLOCK_S) - LARGEST)
        values *= _block_scales(scales, tokens, BLOCKS, HEAD_DIM, BLOCK_S)
        for stage in tl.static_range(STAGES):
            stage_row = head_row * STAGES + stage
            ids = tl.load(address(row, 2, tl.uint8, stage_row * total) + tokens).to(tl.int32)
            table = address(row, 3, tl.bfloat16, stage_row * table_rows * HEAD_DIM)
            values += tl.load(table + ids[:, None] * HEAD_DIM + channels[None, :]).to(tl.float32)
        _store(
            values, tokens, index, target_row, fill, slot, tables, spaces, tokens_per_frame, unit,
            target, pitch, head, PLACEMENT, False, IS_8BIT, IS_TRANSPOSED, IS_REORDERED, HEAD_DIM, BLOCK_S,
        )  # fmt: skip


@kernel(do_not_specialize=GROUPED, do_not_specialize_on_alignment=SLICED)
def asym_decode_kernel(
    entries, tiles, slots, slots_pitch, units, factors, target, pitch, tables, spaces,
    tokens_per_frame, total_heads, first_head, heads,
    BITS: tl.constexpr, BLOCKS: tl.constexpr, ENTRY_COLUMNS: tl.constexpr, PLACEMENT: tl.constexpr,
    IS_8BIT: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_REORDERED: tl.constexpr,
    IS_ALIGNED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    entry, row, source, target_row, count, fill = stretch_of(entries, tiles, ENTRY_COLUMNS, IS_ALIGNED)
    head, head_row = head_row_of(heads, total_heads, first_head)
    total = tl.load(row + TOKENS)
    slot = slots + entry * slots_pitch if PLACEMENT != NONE else slots
    unit = tl.load(units + head) if IS_8BIT else 1.0
    channels = tl.arange(0, HEAD_DIM)
    PITCH: tl.constexpr = HEAD_DIM * BITS // 8
    codes = address(row, 0, tl.uint8, head_row * total * PITCH)
    steps = address(row, 1, tl.uint8, head_row * total * BLOCKS)
    lows = address(row, 2, tl.uint8, head_row * total * BLOCKS)
    ids = address(row, 3, tl.uint8, head_row * total)
    table = address(row, 4, tl.bfloat16, head_row * tl.load(row + TABLE_ROWS) * HEAD_DIM)
    unit_row = address(row, 5, tl.float32, head_row * 2)
    step_unit, low_unit = tl.load(unit_row), tl.load(unit_row + 1)
    for start in tl.range(0, fill, BLOCK_S, num_stages=1):
        index = start + tl.arange(0, BLOCK_S)
        tokens = source + tl.where(index < count, index, 0)
        levels = numbers.float_of(_unpacked(codes, tokens, BITS, PITCH, HEAD_DIM, BLOCK_S))
        step = _block_scales(steps, tokens, BLOCKS, HEAD_DIM, BLOCK_S) * step_unit
        values = _block_scales(lows, tokens, BLOCKS, HEAD_DIM, BLOCK_S) * low_unit + step * levels
        centroid = tl.load(ids + tokens).to(tl.int32)
        values += tl.load(table + centroid[:, None] * HEAD_DIM + channels[None, :]).to(tl.float32)
        _store(
            values, tokens, index, target_row, fill, slot, tables, spaces, tokens_per_frame, unit,
            target, pitch, head, PLACEMENT, False, IS_8BIT, IS_TRANSPOSED, IS_REORDERED, HEAD_DIM, BLOCK_S,
        )  # fmt: skip


@kernel(do_not_specialize=GROUPED, do_not_specialize_on_alignment=SLICED)
def plain_decode_kernel(
    entries, tiles, slots, slots_pitch, units, factors, target, pitch, tables, spaces,
    tokens_per_frame, total_heads, first_head, heads,
    ENTRY_COLUMNS: tl.constexpr, PLACEMENT: tl.constexpr,
    IS_8BIT: tl.constexpr, IS_TRANSPOSED: tl.constexpr, IS_REORDERED: tl.constexpr,
    IS_ALIGNED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    entry, row, source, target_row, count, fill = stretch_of(entries, tiles, ENTRY_COLUMNS, IS_ALIGNED)
    head, head_row = head_row_of(heads, total_heads, first_head)
    total = tl.load(row + TOKENS)
    slot = slots + entry * slots_pitch if PLACEMENT != NONE else slots
    unit = tl.load(units + head) if IS_8BIT else 1.0
    channels = tl.arange(0, HEAD_DIM)
    values_at = address(row, 0, tl.bfloat16, head_row * total * HEAD_DIM)
    for start in tl.range(0, fill, BLOCK_S, num_stages=1):
        index = start + tl.arange(0, BLOCK_S)
        tokens = source + tl.where(index < count, index, 0)
        values = tl.load(values_at + tokens[:, None] * HEAD_DIM + channels[None, :]).to(tl.float32)
        _store(
            values, tokens, index, target_row, fill, slot, tables, spaces, tokens_per_frame, unit,
            target, pitch, head, PLACEMENT, False, IS_8BIT, IS_TRANSPOSED, IS_REORDERED, HEAD_DIM, BLOCK_S,
        )  # fmt: skip
