"""What the table leaves of each token: turned, rounded to levels, scaled, and what the rounding missed.

`fitted.FittedCodec._round` is the torch reference. Rotated channels are made 64 at a time, as eight tensors
of every eighth channel, so that a thread holds whole groups of eight and the code of a grid stands once.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels import lattice
from qvg_kernels.gpu import encode_sizes, numbers
from qvg_kernels.gpu.encode_lattice import nearest_words, pattern_codes
from qvg_kernels.gpu.encode_levels import joined, nearest_levels, token_sum
from qvg_kernels.gpu.encode_points import Points, centred, load_tokens
from qvg_kernels.gpu.encode_table import TINY, table_steps
from qvg_kernels.gpu.numbers import OPERAND, token_pattern
from qvg_kernels.gpu.rehearsal import kernel
from qvg_kernels.grids import ScalarGrid, grid
from qvg_kernels.rotation import sign_patterns
from qvg_kernels.spec import GridName

QUARTER = tl.constexpr(lattice.STEP)


@cache
def wide_flips(head_dim: int, device: torch.device) -> Tensor:
    """`[64, head_dim]` int8: -128 where a sign pattern is negative, else 0."""
    flips: Tensor = torch.where(sign_patterns(head_dim, device) < 0, -128, 0).to(torch.int8)
    return flips


@cache
def hadamard_columns(head_dim: int, device: torch.device) -> Tensor:
    """`[D / 64, 8, D, 8]`: the matrix of signs, where column `64 a + 8 b + c` is `[a, c, :, b]`."""
    columns = numbers.hadamard_signs(head_dim, device).to(numbers.operand_dtype())
    return columns.reshape(head_dim, -1, 8, 8).permute(1, 3, 0, 2).contiguous()


@cache
def hadamard_rows(head_dim: int, device: torch.device) -> Tensor:
    """`[D / 64, 4, 16, D]`: the matrix of signs, where row `64 a + 8 b + 2 c + d` is `[a, c, 2 b + d]`."""
    rows = numbers.hadamard_signs(head_dim, device).to(numbers.operand_dtype())
    return rows.reshape(-1, 8, 4, 2, head_dim).transpose(1, 2).reshape(-1, 4, 16, head_dim).contiguous()


@triton.jit
def _flipped(values, flips):
    """Float32 values, negated where `flips` is -128; residuals may be too large for float16."""
    bits = values.to(tl.int32, bitcast=True) ^ (flips.to(tl.int32) << 24)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _rotated(residual, columns, chunk, HEAD_DIM: tl.constexpr):
    """Rotated channels `64 * chunk` to `64 * chunk + 63`: eight tensors `[BLOCK_S, 8]` of every eighth."""
    at = columns + chunk * (64 * HEAD_DIM) + tl.arange(0, HEAD_DIM)[:, None] * 8 + tl.arange(0, 8)[None, :]
    parts = ()
    for place in tl.static_range(8):
        matrix = tl.load(at + place * (8 * HEAD_DIM))
        parts = parts + (tl.dot(residual, matrix, input_precision="ieee") * HEAD_DIM**-0.5,)
    return parts


@triton.jit
def _add_turned_back(total, levels, rows, chunk, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr):
    """Add what the levels of a chunk are before the rotation, times the root of HEAD_DIM."""
    at = rows + chunk * (64 * HEAD_DIM)
    at += tl.arange(0, 16)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    for pair in tl.static_range(4):
        both = tl.reshape(tl.join(levels[2 * pair], levels[2 * pair + 1]), [BLOCK_S, 16]).to(OPERAND)
        total = tl.dot(both, tl.load(at + pair * (16 * HEAD_DIM)), total, input_precision="ieee")
    return total


@triton.jit
def _store_codes(
    codes, words, indices, chunk, row, is_token, GRID: tl.constexpr, HEAD_DIM: tl.constexpr
):  # fmt: skip
    """Store the codes of a chunk's eight groups, as `codes` and the grid have them."""
    GROUPS: tl.constexpr = HEAD_DIM // 8
    group = 8 * chunk + tl.arange(0, 8)[None, :]
    mask = is_token[:, None]
    if GRID == "e8":
        tl.store(codes + row[:, None] * GROUPS + group, words.to(tl.int16), mask=mask)
    elif GRID == "int2":
        tl.store(codes + row[:, None] * GROUPS + group, joined(indices, 2).to(tl.int16), mask=mask)
    elif GRID == "int4":
        tl.store(codes + row[:, None] * GROUPS + group, joined(indices, 4), mask=mask)
    elif GRID == "int3":
        low, high = (), ()
        for place in tl.static_range(8):
            low, high = low + (indices[place] & 3,), high + (indices[place] >> 2,)
        both, top = joined(low, 2), joined(high, 1)
        at = codes + row[:, None] * (3 * GROUPS)
        tl.store(at + 2 * group, both.to(tl.uint8), mask=mask)
        tl.store(at + 2 * group + 1, (both >> 8).to(tl.uint8), mask=mask)
        tl.store(at + 2 * GROUPS + group, top.to(tl.uint8), mask=mask)
    else:
        for place in tl.static_range(8):
            at = codes + row[:, None] * HEAD_DIM + 8 * group + place
            tl.store(at, indices[place].to(tl.uint8), mask=mask)


@kernel(do_not_specialize=["phase", "count", "num_tokens", "num_chunks", "num_shifts", "unbiased"])
def _residual_kernel(
    span, head_stride, token_stride, offset, inverse, ids, table, steps, units,
    flips, columns, rows, patterns, codes, scales, largest, errors,
    phase, count, num_tokens, num_chunks, num_shifts, step, unbiased,
    GRID: tl.constexpr, LEVELS: tl.constexpr, NUM_LEVELS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Codes and exact scale of each token, the largest scale of the block, and the errors of the values.

    The errors are those under scales rounded to four significant bits, as e4m3 rounds all but those below
    2**-14 of the head's largest, whose errors are too small to count.
    """
    head = tl.program_id(1)
    tokens = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    is_token = tokens < num_tokens
    channels = tl.arange(0, HEAD_DIM)
    values = load_tokens(span, head_stride, token_stride, tokens, is_token, HEAD_DIM)
    residual = centred(values, offset, inverse, HEAD_DIM)
    row = head.to(tl.int64) * num_tokens + tokens
    if ids is not None:
        cluster = tl.load(ids + row, mask=is_token, other=0).to(tl.int32)
        entry = tl.load(table + (head * count + cluster)[:, None] * HEAD_DIM + channels[None, :])
        residual -= table_steps(steps, units, head, HEAD_DIM)[None, :] * entry.to(tl.float32)
    flip = tl.load(flips + token_pattern(tokens, phase)[:, None] * HEAD_DIM + channels[None, :])
    residual = _flipped(residual, flip)
    # The rotation keeps the energy.
    energy = tl.sum(residual * residual, 1)
    # Rounding to bf16 errs 40 dB less than the finest grid.
    residual = residual.to(OPERAND)
    spread = 1.0 / tl.maximum(tl.sqrt(energy / HEAD_DIM), TINY)
    if GRID == "e8":
        factor = spread / QUARTER
    else:
        factor = spread / step
        along = tl.zeros([BLOCK_S], tl.float32)
        square = tl.zeros([BLOCK_S], tl.float32)
        for chunk in tl.range(num_chunks, num_stages=1):
            rotated = _rotated(residual, columns, chunk, HEAD_DIM)
            levels, _ = nearest_levels(rotated, factor, LEVELS, NUM_LEVELS)
            along += token_sum(rotated, levels)
            square += token_sum(levels, levels)
        # Each token's step is refined once, to the one that fits these levels best.
        factor = spread / tl.maximum(spread * along / tl.maximum(square, 1e-9), 1e-9)
    along = tl.zeros([BLOCK_S], tl.float32)
    square = tl.zeros([BLOCK_S], tl.float32)
    turned = tl.zeros([BLOCK_S, HEAD_DIM], tl.float32)
    for chunk in tl.range(num_chunks, num_stages=1):
        rotated = _rotated(residual, columns, chunk, HEAD_DIM)
        if GRID == "e8":
            levels, words = nearest_words(rotated, factor, patterns, num_shifts)
            _store_codes(codes, words, (), chunk, row, is_token, GRID, HEAD_DIM)
        else:
            levels, indices = nearest_levels(rotated, factor, LEVELS, NUM_LEVELS)
            _store_codes(codes, None, indices, chunk, row, is_token, GRID, HEAD_DIM)
        along += token_sum(rotated, levels)
        square += token_sum(levels, levels)
        # Always so. Within a branch this product gets a layout of its own; in the chain with the first one
        # both would be split over the warps along the channels, and every warp repeat the search above.
        if num_chunks > 0:
            turned = _add_turned_back(turned, levels, rows, chunk, HEAD_DIM, BLOCK_S)

    unshrunk = tl.maximum(energy / tl.maximum(along, TINY), TINY)
    nearest = tl.maximum(along / tl.maximum(square, TINY), TINY)
    scale = tl.exp2(unbiased * tl.log2(unshrunk) + (1.0 - unbiased) * tl.log2(nearest))
    scale = tl.where((energy > 0) & is_token, scale, 0.0)
    tl.store(scales + row, scale, mask=is_token)
    tl.store(largest + head * tl.num_programs(0) + tl.program_id(0), tl.max(scale, 0))

    bits = scale.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    error = _flipped(residual.to(tl.float32) - (rounded * HEAD_DIM**-0.5)[:, None] * turned, flip)
    at = errors + row[:, None] * HEAD_DIM + channels[None, :]
    tl.store(at, error.to(OPERAND), mask=is_token[:, None])


@kernel(do_not_specialize=["num_tokens", "num_rows"])
def _trit_kernel(indices, codes, num_tokens, num_rows, HEAD_DIM: tl.constexpr, BLOCK_R: tl.constexpr):
    """Five tokens a byte: `qvg_kernels.bitpack.pack_trits`."""
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channels = tl.arange(0, HEAD_DIM)
    packed = tl.zeros([BLOCK_R, HEAD_DIM], tl.int32)
    for place in tl.static_range(4, -1, -1):
        tokens = 5 * rows + place
        at = indices + (head * num_tokens + tokens)[:, None] * HEAD_DIM + channels[None, :]
        packed = packed * 3 + tl.load(at, mask=(tokens < num_tokens)[:, None], other=0).to(tl.int32)
    at = codes + (head * num_rows + rows)[:, None] * HEAD_DIM + channels[None, :]
    tl.store(at, packed.to(tl.uint8), mask=(rows < num_rows)[:, None])


def round_residuals(
    points: Points, ids: Tensor | None, table: Tensor | None, steps: Tensor | None, units: Tensor,
    name: GridName, phase: int, unbiased: float, codes: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Round what the table leaves of every token.

    Args:
        ids: `[H, S]` uint8; with `table` and `steps`, or none of them.
        units: `[H, 3]` float32, of which the kernels read the unit of the steps.
        name: Of the grid.
        phase: Of the span's sign patterns.
        unbiased: As `spec.FittedSpec` has it.
        codes: `[H, rows, bytes]` uint8, contiguous; receives the codes.

    Returns:
        Exact scales `[H, S]`, the largest of each block `[H, blocks]`, and what the rounding missed of each
        point, `[H, S, D]` as products take it.
    """
    tokens, head_dim, device = points.tokens, points.head_dim, points.span.device
    shape = encode_sizes.codes(head_dim)
    blocks = triton.cdiv(tokens, shape.tokens)
    scales, largest = points.empty(tokens), points.empty(blocks)
    errors = points.empty(tokens, head_dim, dtype=numbers.operand_dtype())
    form = grid(name)
    levels, step = (form.levels, form.step) if isinstance(form, ScalarGrid) else ((), 0.0)
    if name == "trit":
        target = points.empty(tokens, head_dim, dtype=torch.uint8)
    elif name == "int3":
        target = codes
    else:
        target = codes.view(torch.int32) if name == "int4" else codes.view(torch.int16)
    count = 0 if table is None else table.shape[1]
    _residual_kernel[(blocks, points.heads)](
        points.span, *points.span.stride()[:2], points.offset, points.inverse, ids, table, steps, units,
        wide_flips(head_dim, device), hadamard_columns(head_dim, device),
        hadamard_rows(head_dim, device), pattern_codes(device),
        target, scales, largest, errors, phase, count, tokens, head_dim // 64, 2,
        step, unbiased, name, levels, len(levels), head_dim, shape.tokens,
        num_warps=shape.warps, maxnreg=shape.registers,
    )  # fmt: skip
    if name == "trit":
        rows = codes.shape[1]
        _trit_kernel[(triton.cdiv(rows, 32), points.heads)](
            target, codes, tokens, rows, head_dim, 32, num_warps=4
        )
    return scales, largest, errors
