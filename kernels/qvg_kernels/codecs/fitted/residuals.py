"""What the table leaves of each token: turned, rounded to levels, scaled, and what the rounding missed.

`FittedCodec._round` is the torch reference. Rotated channels are made a chunk at a time and taken
apart into eight tensors of every eighth channel: a thread holds whole groups of eight, and the code of a
grid stands once.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.codecs.fitted.grids import ScalarGrid, grid
from qvg_kernels.codecs.fitted.levels import (
    add_products,
    joined,
    nearest_levels,
    nearest_roots,
    nearest_words,
)
from qvg_kernels.codecs.fitted.spec import FittedSpec
from qvg_kernels.quant import lattice, numbers
from qvg_kernels.quant.hadamard import hadamard
from qvg_kernels.quant.numbers import OPERAND, token_pattern
from qvg_kernels.quant.points import Points, centred, load_tokens
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import kernel

TINY = tl.constexpr(1e-30)
"""`reference.TINY`."""


@cache
def hadamard_chunks(head_dim: int, device: torch.device) -> Tensor:
    """`[D / CHUNK, CHUNK, D]`: the Sylvester matrix of 1 and -1, in an order of its rows that suits products.

    The kernel divides by `sqrt(D)`.

    Of 32 rows, row `8 a + 2 b + c` is channel `8 b + 2 a + c`. A thread has columns `2 b`, `2 b + 1` and
    every eighth further of a product, for one `b`: so it has group `b` whole, and the next product takes
    the levels from where they are.
    """
    signs = hadamard(head_dim, device).sign().to(numbers.OPERAND_DTYPE)
    rows = signs.reshape(-1, launch.CHUNK // 32, 4, 4, 2, head_dim).transpose(2, 3)
    return rows.reshape(-1, launch.CHUNK, head_dim).contiguous()


@triton.jit
def _flipped(values, flips, tokens, phase, HEAD_DIM: tl.constexpr):
    """Values of type OPERAND under their tokens' sign patterns; residuals may be too large for float16."""
    at = token_pattern(tokens, phase)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    flip = tl.load(flips + at)
    if values.dtype == tl.float32:
        flipped = (values.to(tl.int32, bitcast=True) ^ (flip.to(tl.int32) << 16)).to(tl.float32, bitcast=True)
    else:
        flipped = (values.to(tl.int16, bitcast=True) ^ flip).to(values.dtype, bitcast=True)
    return flipped


@triton.jit
def _rotated(residual, signs, factor, TILE_S: tl.constexpr, CHUNK: tl.constexpr):
    """Rotated channels of a chunk, times factors: eight tensors `[TILE_S, CHUNK / 8]` of every eighth."""
    product = tl.dot(residual, signs.T, input_precision="ieee") * factor[:, None]
    product = tl.reshape(product, [TILE_S, CHUNK // 32, 2, 2, 4, 2])
    product = tl.reshape(tl.permute(product, (0, 1, 4, 5, 3, 2)), [TILE_S, CHUNK // 8, 2, 2, 2])
    low, high = tl.split(product)
    first, second = tl.split(low)
    third, fourth = tl.split(high)
    return tl.split(first) + tl.split(second) + tl.split(third) + tl.split(fourth)


@triton.jit
def _add_turned_back(total, levels, signs, TILE_S: tl.constexpr, CHUNK: tl.constexpr):
    """Add what the levels of a chunk are before the rotation, times the root of HEAD_DIM."""
    a, b, c, d, e, f, g, h = levels
    low = tl.join(tl.join(a, b), tl.join(c, d))
    high = tl.join(tl.join(e, f), tl.join(g, h))
    both = tl.reshape(tl.join(low, high), [TILE_S, CHUNK // 32, 4, 2, 2, 2])
    both = tl.reshape(tl.permute(both, (0, 1, 5, 4, 2, 3)), [TILE_S, CHUNK])
    return tl.dot(both.to(OPERAND), signs, total, input_precision="ieee")


@triton.jit
def _store_codes(
    codes, words, indices, chunk, row, is_token,
    GRID: tl.constexpr, HEAD_DIM: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Store the codes of a chunk's groups, as `codes` and the grid have them."""
    GROUPS: tl.constexpr = HEAD_DIM // 8
    group = (CHUNK // 8) * chunk + tl.arange(0, CHUNK // 8)[None, :]
    mask = is_token[:, None]
    if GRID == "e8":
        tl.store(codes + row[:, None] * GROUPS + group, words.to(tl.int16), mask=mask)
    elif GRID == "e8x1":
        tl.store(codes + row[:, None] * GROUPS + group, words.to(tl.uint8), mask=mask)
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


@kernel(do_not_specialize=["phases", "count", "num_tokens", "num_chunks", "num_shifts", "unbiased"])
def _residual_kernel(
    block, head_stride, token_stride, offset, inverse, ids, table, steps,
    flips, matrix, patterns, codes, scales, largest, errors,
    phases, count, num_tokens, num_chunks, num_shifts, step, unbiased,
    GRID: tl.constexpr, LEVELS: tl.constexpr, NUM_LEVELS: tl.constexpr,
    HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Codes and exact scale of each token, the largest scale of the tile, and the errors of the values.

    Args:
        block: `[H, S, D]`; `offset` and `inverse` as `points.Points` has them.
        ids: `[H, S]` uint8, rows of `table`, `[H, count, D]` int8 in `steps`, `[H, D]`; `None` without a
            codebook.
        phases: `[H]` uint8, of the sign patterns.
        flips: `numbers.sign_flips`; `matrix` is `hadamard_chunks`, `patterns` is `lattice.pattern_codes`.
        codes: Receives the codes; `scales` `[H, S]`, `largest` `[H, tiles]` and `errors` `[H, S, D]`
            likewise.
        step: Of the levels in deviations, that of single values before it is fitted; `unbiased` as in the
            spec.

    The errors are those under scales rounded to four significant bits, as e4m3 rounds all but those below
    2**-14 of the head's largest, whose errors are too small to count.
    """
    head = tl.program_id(1)
    tokens = tl.program_id(0) * TILE_S + tl.arange(0, TILE_S)
    is_token = tokens < num_tokens
    channels = tl.arange(0, HEAD_DIM)
    phase = tl.load(phases + head)
    # [TILE_S, HEAD_DIM]
    values = load_tokens(block, head_stride, token_stride, tokens, is_token, HEAD_DIM)
    residual = centred(values, offset, inverse, HEAD_DIM)
    row = head.to(tl.int64) * num_tokens + tokens
    if ids is not None:
        cluster = tl.load(ids + row, mask=is_token, other=0).to(tl.int32)
        entry = tl.load(table + (head * count + cluster)[:, None] * HEAD_DIM + channels[None, :])
        residual -= tl.load(steps + head * HEAD_DIM + channels)[None, :] * entry.to(tl.float32)
    # Signs and the rotation keep the energy.
    energy = tl.sum(residual * residual, 1)
    # Rounding to bf16 errs 40 dB less than the finest grid.
    residual = _flipped(residual.to(OPERAND), flips, tokens, phase, HEAD_DIM)
    at = tl.arange(0, CHUNK)[:, None] * HEAD_DIM + channels[None, :]
    spread = HEAD_DIM**-0.5 / tl.maximum(tl.sqrt(energy / HEAD_DIM), TINY)
    factor = spread / step
    if NUM_LEVELS > 0:
        along = tl.zeros([TILE_S, CHUNK // 8], tl.float32)
        square = tl.zeros([TILE_S, CHUNK // 8], tl.float32)
        for chunk in tl.range(num_chunks, num_stages=1):
            # [CHUNK, HEAD_DIM]
            signs = tl.load(matrix + (CHUNK * HEAD_DIM) * chunk + at)
            rotated = _rotated(residual, signs, factor, TILE_S, CHUNK)
            levels, _ = nearest_levels(rotated, LEVELS, NUM_LEVELS)
            along = add_products(along, rotated, levels)
            square = add_products(square, levels, levels)
        # Each token's step is refined once, to the one that fits these levels best.
        ratio = tl.sum(along, 1) / tl.maximum(tl.sum(square, 1), 1e-9)
        factor = spread / tl.maximum(step * ratio, 1e-9)
    along = tl.zeros([TILE_S, CHUNK // 8], tl.float32)
    square = tl.zeros([TILE_S, CHUNK // 8], tl.float32)
    turned = tl.zeros([TILE_S, HEAD_DIM], tl.float32)
    for chunk in tl.range(num_chunks, num_stages=1):
        # [CHUNK, HEAD_DIM]
        signs = tl.load(matrix + (CHUNK * HEAD_DIM) * chunk + at)
        rotated = _rotated(residual, signs, factor, TILE_S, CHUNK)
        if GRID == "e8":
            levels, words = nearest_words(rotated, patterns, num_shifts)
            _store_codes(codes, words, (), chunk, row, is_token, GRID, HEAD_DIM, CHUNK)
        elif GRID == "e8x1":
            levels, words = nearest_roots(rotated)
            _store_codes(codes, words, (), chunk, row, is_token, GRID, HEAD_DIM, CHUNK)
        else:
            levels, indices = nearest_levels(rotated, LEVELS, NUM_LEVELS)
            _store_codes(codes, None, indices, chunk, row, is_token, GRID, HEAD_DIM, CHUNK)
        along = add_products(along, rotated, levels)
        square = add_products(square, levels, levels)
        turned = _add_turned_back(turned, levels, signs, TILE_S, CHUNK)

    # In the products `rotated` was times its factor.
    along = tl.sum(along, 1) * (HEAD_DIM**-0.5 / factor)
    square = tl.sum(square, 1)
    unshrunk = tl.maximum(energy / tl.maximum(along, TINY), TINY)
    nearest = tl.maximum(along / tl.maximum(square, TINY), TINY)
    scale = tl.exp2(unbiased * tl.log2(unshrunk) + (1.0 - unbiased) * tl.log2(nearest))
    scale = tl.where((energy > 0) & is_token, scale, 0.0)
    tl.store(scales + row, scale, mask=is_token)
    tl.store(largest + head * tl.num_programs(0) + tl.program_id(0), tl.max(scale, 0))

    bits = scale.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    error = (residual.to(tl.float32) - (rounded * HEAD_DIM**-0.5)[:, None] * turned).to(OPERAND)
    error = _flipped(error, flips, tokens, phase, HEAD_DIM)
    tl.store(errors + row[:, None] * HEAD_DIM + channels[None, :], error, mask=is_token[:, None])


@kernel(do_not_specialize=["num_tokens", "num_rows"])
def _trit_kernel(indices, codes, num_tokens, num_rows, HEAD_DIM: tl.constexpr, TILE_R: tl.constexpr):
    """Five tokens a byte: `bitpack.pack_trits`."""
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * TILE_R + tl.arange(0, TILE_R)
    channels = tl.arange(0, HEAD_DIM)
    packed = tl.zeros([TILE_R, HEAD_DIM], tl.int32)
    for place in tl.static_range(4, -1, -1):
        tokens = 5 * rows + place
        at = indices + (head * num_tokens + tokens)[:, None] * HEAD_DIM + channels[None, :]
        packed = packed * 3 + tl.load(at, mask=(tokens < num_tokens)[:, None], other=0).to(tl.int32)
    at = codes + (head * num_rows + rows)[:, None] * HEAD_DIM + channels[None, :]
    tl.store(at, packed.to(tl.uint8), mask=(rows < num_rows)[:, None])


def round_residuals(
    points: Points, ids: Tensor | None, table: Tensor | None, steps: Tensor | None,
    spec: FittedSpec, phases: Tensor, codes: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Round what the table leaves of every token.

    Args:
        ids: `[H, S]` uint8; with `table` and `steps`, or all are `None`.
        steps: `[H, D]` float32, of the table.
        phases: `[H, 1]` uint8, contiguous, of the block's sign patterns.
        codes: `[H, rows, bytes]` uint8, contiguous; receives the codes.

    Returns:
        Exact scales `[H, S]`, the largest of each tile `[H, tiles]`, and what the rounding missed of each
        point, `[H, S, D]` as products take it.
    """
    tokens, head_dim, device = points.tokens, points.head_dim, points.block.device
    shape = launch.residuals(head_dim)
    tiles = triton.cdiv(tokens, shape.rows)
    scales, largest = points.empty(tokens), points.empty(tiles)
    errors = points.empty(tokens, head_dim, dtype=numbers.OPERAND_DTYPE)
    name = spec.grid
    form = grid(name)
    levels = form.levels if isinstance(form, ScalarGrid) else ()
    if name == "trit":
        target = points.empty(tokens, head_dim, dtype=torch.uint8)
    elif name in ("int3", "e8x1"):
        target = codes
    else:
        target = codes.view(torch.int32) if name == "int4" else codes.view(torch.int16)
    count = 0 if table is None else table.shape[1]
    _residual_kernel[(tiles, points.heads)](
        points.block, *points.strides, points.offset, points.inverse, ids, table, steps,
        numbers.sign_flips(head_dim, device), hadamard_chunks(head_dim, device),
        lattice.pattern_codes(device), target, scales, largest, errors,
        phases, count, tokens, head_dim // launch.CHUNK, 2,
        form.step, spec.unbiased, name, levels, len(levels), head_dim, shape.rows, launch.CHUNK,
        num_warps=shape.warps, maxnreg=shape.registers,
    )  # fmt: skip
    if name == "trit":
        rows = codes.shape[1]
        _trit_kernel[(triton.cdiv(rows, 32), points.heads)](
            target, codes, tokens, rows, head_dim, 32, num_warps=4
        )
    return scales, largest, errors
