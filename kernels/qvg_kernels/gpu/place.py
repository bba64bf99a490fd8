"""Where tokens stand: the rotations that decoded or given keys and values get, in registers.

`qvg_kernels.placement` is the torch reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.gpu import launch
from qvg_kernels.placement import Placement, Rotary, on_device

NONE = tl.constexpr(0)
ROTARY = tl.constexpr(1)
MATRICES = tl.constexpr(2)


@triton.jit
def place(
    values, tokens, slots, cosines, sines, rows, columns,
    PLACEMENT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Float32 values `[BLOCK_S, HEAD_DIM]`, placed.

    Args:
        tokens: `[BLOCK_S]` int32 numbers of the tokens among those of the frames that `slots` lists.
        slots: Pointer to the int32 row of `cosines` (or of the matrices) of each frame.
        cosines: Pointer to `[P, HEAD_DIM // 2]` cosines, or to `[P, 4, 4]` matrices.
        sines: Pointer to `[P, HEAD_DIM // 2]` sines; unused with matrices.
        rows: Of tokens in a frame.
        columns: Of tokens in a frame.
    """
    if PLACEMENT == ROTARY:
        return _rotate(values, tokens, slots, cosines, sines, rows, columns, HEAD_DIM, BLOCK_S)
    else:
        return _multiply(values, tokens, slots, cosines, rows * columns, HEAD_DIM, BLOCK_S)


@triton.jit
def _rotate(
    values, tokens, slots, cosines, sines, rows, columns, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr
):  # fmt: skip
    """Adjacent pairs of channels turned by time, row or column; see `qvg_kernels.placement.Rotary`."""
    HALF: tl.constexpr = HEAD_DIM // 2
    SIDE: tl.constexpr = HEAD_DIM // 6
    frame = tokens // (rows * columns)
    place_in_frame = tokens - frame * (rows * columns)
    slot = tl.load(slots + frame)
    row = place_in_frame // columns
    column = place_in_frame - row * columns
    pair = tl.arange(0, HALF)[None, :]
    position = tl.where(
        pair < HALF - 2 * SIDE, slot[:, None], tl.where(pair < HALF - SIDE, row[:, None], column[:, None])
    )
    cosine = tl.load(cosines + position * HALF + pair)
    sine = tl.load(sines + position * HALF + pair)
    even, odd = tl.split(tl.reshape(values, [BLOCK_S, HALF, 2]))
    return tl.reshape(tl.join(even * cosine - odd * sine, even * sine + odd * cosine), [BLOCK_S, HEAD_DIM])


@triton.jit
def _multiply(
    values, tokens, slots, matrices, tokens_per_frame, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr
):
    """Groups of four channels multiplied by their frame's matrix."""
    matrix = matrices + tl.load(slots + tokens // tokens_per_frame)[:, None] * 16
    groups = tl.reshape(values, [BLOCK_S, HEAD_DIM // 4, 2, 2])
    zero_two, one_three = tl.split(groups)
    zero, two = tl.split(zero_two)
    one, three = tl.split(one_three)
    first = _row(matrix, zero, one, two, three)
    second = _row(matrix + 4, zero, one, two, three)
    third = _row(matrix + 8, zero, one, two, three)
    fourth = _row(matrix + 12, zero, one, two, three)
    return tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), [BLOCK_S, HEAD_DIM])


@triton.jit
def _row(matrix, zero, one, two, three):
    """One row of the matrices times the four channels of each group."""
    low = tl.load(matrix) * zero + tl.load(matrix + 1) * one
    return low + tl.load(matrix + 2) * two + tl.load(matrix + 3) * three


@triton.jit
def _place_kernel(
    source, target, slots, cosines, sines,
    source_batch, source_head, source_token, target_batch, target_head, target_token,
    heads, num_tokens, num_rows, first_token, rows, columns,
    PLACEMENT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Copy tokens from one strided tensor to another, placed, and zeros to the other's remaining rows."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    tokens = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    channels = tl.arange(0, HEAD_DIM)
    is_token = (tokens < num_tokens)[:, None]
    at = source + batch * source_batch + head * source_head
    at += tokens[:, None].to(tl.int64) * source_token + channels[None, :]
    values = tl.load(at, mask=is_token, other=0.0).to(tl.float32)
    # Tokens beyond the last take the last one's place: its slot exists.
    placed = tl.minimum(tokens, num_tokens - 1) + first_token
    if PLACEMENT != NONE:
        values = place(values, placed, slots, cosines, sines, rows, columns, PLACEMENT, HEAD_DIM, BLOCK_S)
    at = target + batch * target_batch + head * target_head
    at += tokens[:, None].to(tl.int64) * target_token + channels[None, :]
    tl.store(at, values.to(target.dtype.element_ty), mask=(tokens < num_rows)[:, None])


@dataclass(frozen=True)
class KernelPlacement:
    """A placement as `place` takes it.

    Attributes:
        kind: NONE, ROTARY or MATRICES.
        cosines: Or the matrices.
        rows: Of tokens in a frame.
        columns: Of tokens in a frame.
        gain: How much it may enlarge the largest value.
    """

    kind: int
    cosines: Tensor | None
    sines: Tensor | None
    rows: int
    columns: int
    gain: float

    @classmethod
    def of(cls, placement: Placement | None) -> KernelPlacement:
        """What `placement` is to a kernel; none leaves values as they are."""
        if isinstance(placement, Rotary):
            tables = placement.tables
            # A pair keeps its length, which is at most the root of two times its larger value.
            return cls(1, tables.cosine, tables.sine, placement.rows, placement.columns, 2**0.5)
        if placement is not None:
            return cls(2, placement.matrices, None, 1, placement.tokens_per_frame, placement.gain)
        return cls(0, None, None, 1, 1, 1.0)


def apply_placement(placement: Placement, states: Tensor, tokens: slice) -> Tensor:
    """`placement.apply` by a kernel: `[B, H, S, D]` with any strides but the last, to a contiguous tensor."""
    target = torch.empty_like(states, memory_format=torch.contiguous_format)
    copy_placed(placement, states, tokens, target)
    return target


def copy_placed(placement: Placement | None, states: Tensor, tokens: slice, target: Tensor) -> None:
    """Copy `[B, H, S, D]` states, which are `tokens` of the placement's frames, placed.

    Args:
        target: `[B, H, S or more, D]`; rows beyond S become zeros.
    """
    batch, heads, num_tokens, head_dim = states.shape
    form = KernelPlacement.of(placement)
    slots = None if placement is None else on_device(placement.slots, states.device)
    block = launch.PLACE_TOKENS
    num_rows = target.shape[2]
    _place_kernel[(triton.cdiv(num_rows, block), batch * heads)](
        states, target, slots, form.cosines, form.sines,
        *states.stride()[:3], *target.stride()[:3],
        heads, num_tokens, num_rows, tokens.start or 0, form.rows, form.columns,
        form.kind, head_dim, block, num_warps=4,
    )  # fmt: skip
