"""Where tokens stand: the rotations that decoded or given keys and values get, in registers.

`placement` is the torch reference.
"""

import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.rope.tables import KernelPlacement, on_device
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import GROUPED, kernel

NONE = tl.constexpr(0)
ROTARY = tl.constexpr(1)
MATRICES = tl.constexpr(2)


@triton.jit
def rotation_of(slots, tokens, times, spaces, tokens_per_frame, HEAD_DIM: tl.constexpr):
    """Cosines and sines of tokens, two `[TILE_S, HEAD_DIM // 2]` float16.

    Args:
        slots: Pointer to the int32 row of `times` of each frame.
        tokens: `[TILE_S]` int32 numbers of the tokens among those of the frames.
        times: Pointer to `[P, HEAD_DIM]` float16, cosines then sines of each time.
        spaces: Pointer to `[tokens_per_frame, HEAD_DIM]` float16, likewise of each place.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    frame = tokens // tokens_per_frame
    pair = tl.arange(0, HALF)[None, :]
    time = times + tl.load(slots + frame)[:, None] * HEAD_DIM + pair
    space = spaces + (tokens - frame * tokens_per_frame)[:, None] * HEAD_DIM + pair
    is_time = pair < HALF - 2 * (HEAD_DIM // 6)
    # Two [TILE_S, HALF].
    cosine = tl.where(is_time, tl.load(time), tl.load(space))
    sine = tl.where(is_time, tl.load(time + HALF), tl.load(space + HALF))
    return cosine, sine


@triton.jit
def rotate(values, cosine, sine, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    """Adjacent pairs of channels of `[TILE_S, HEAD_DIM]` turned; see `placement.Rotary`."""
    even, odd = tl.split(tl.reshape(values, [TILE_S, HEAD_DIM // 2, 2]))
    return tl.reshape(tl.join(even * cosine - odd * sine, even * sine + odd * cosine), [TILE_S, HEAD_DIM])


@triton.jit
def multiply(values, tokens, slots, matrices, tokens_per_frame, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr):
    """Groups of four channels multiplied by their frame's matrix, `[P, 4, 4]` float32."""
    matrix = matrices + tl.load(slots + tokens // tokens_per_frame)[:, None] * 16
    groups = tl.reshape(values, [TILE_S, HEAD_DIM // 4, 2, 2])
    zero_two, one_three = tl.split(groups)
    zero, two = tl.split(zero_two)
    one, three = tl.split(one_three)
    return tl.reshape(multiply_quads(matrix, zero, one, two, three), [TILE_S, HEAD_DIM])


@triton.jit
def multiply_quads(matrix, zero, one, two, three):
    """`[TILE_S, HEAD_DIM // 4, 2, 2]` products of matrices with four channels, given apart."""
    first = _row(matrix, zero, one, two, three)
    second = _row(matrix + 4, zero, one, two, three)
    third = _row(matrix + 8, zero, one, two, three)
    fourth = _row(matrix + 12, zero, one, two, three)
    return tl.join(tl.join(first, third), tl.join(second, fourth))


@triton.jit
def _row(matrix, zero, one, two, three):
    """One row of the matrices times the four channels of each group."""
    low = tl.load(matrix) * zero + tl.load(matrix + 1) * one
    return low + tl.load(matrix + 2) * two + tl.load(matrix + 3) * three


@kernel(do_not_specialize=GROUPED)
def _place_kernel(
    source, target, slots, tables, spaces,
    source_batch, source_head, source_token, target_batch, target_head, target_token,
    heads, num_tokens, num_rows, first_token, tokens_per_frame,
    PLACEMENT: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    """Copy tokens from one strided tensor to another, placed, and zeros to the other's remaining rows."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    tokens = tl.program_id(0) * TILE_S + tl.arange(0, TILE_S)
    channels = tl.arange(0, HEAD_DIM)
    is_token = (tokens < num_tokens)[:, None]
    at = source + batch * source_batch + head * source_head
    at += tokens[:, None].to(tl.int64) * source_token + channels[None, :]
    # [TILE_S, HEAD_DIM]
    values = tl.load(at, mask=is_token, other=0.0).to(tl.float32)
    # Tokens beyond the last take the last one's place: its slot exists.
    placed = tl.minimum(tokens, num_tokens - 1) + first_token
    if PLACEMENT == ROTARY:
        cosine, sine = rotation_of(slots, placed, tables, spaces, tokens_per_frame, HEAD_DIM)
        values = rotate(values, cosine, sine, HEAD_DIM, TILE_S)
    if PLACEMENT == MATRICES:
        values = multiply(values, placed, slots, tables, tokens_per_frame, HEAD_DIM, TILE_S)
    at = target + batch * target_batch + head * target_head
    at += tokens[:, None].to(tl.int64) * target_token + channels[None, :]
    tl.store(at, values.to(target.dtype.element_ty), mask=(tokens < num_rows)[:, None])


def copy_placed(placement: KernelPlacement, states: Tensor, tokens: slice, target: Tensor) -> None:
    """Copy `[B, H, S, D]` states, which are `tokens` of the placement's frames, placed.

    Args:
        target: `[B, H, S or more, D]`; rows beyond S become zeros.
    """
    batch, heads, num_tokens, head_dim = states.shape
    slots = on_device(placement.slots, states.device) if placement.kind else None
    tile = launch.PLACE_TOKENS
    num_rows = target.shape[2]
    _place_kernel[(triton.cdiv(num_rows, tile), batch * heads)](
        states, target, slots, placement.tables, placement.spaces,
        *states.stride()[:3], *target.stride()[:3],
        heads, num_tokens, num_rows, tokens.start or 0, placement.tokens_per_frame,
        placement.kind, head_dim, tile, num_warps=1,
    )  # fmt: skip
