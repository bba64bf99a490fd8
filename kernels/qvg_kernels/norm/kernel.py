"""Norms as kernels: a program reads some pixels, or a token, with all their channels and writes them once."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE_VALUES = 8192
"""Values of a program: of 96 channels, 64 pixels."""
_NORM_TOKENS, _NORM_WARPS = 2, 4
"""Tokens of a program, which share the vectors, and its warps."""


@triton.jit
def _norm_silu_kernel(
    states, gamma, out, scale, num_pixels, frame_pixels,
    state_stride_b, state_stride_c, state_stride_t, state_stride_p,
    out_stride_b, out_stride_c, out_stride_t, out_stride_p, num_frames,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    mask = (pixel < num_pixels)[:, None] & (channel < CHANNELS)[None, :]
    frame = pixel // frame_pixels
    place, batch, time = pixel % frame_pixels, frame // num_frames, frame % num_frames
    # [BLOCK_P, BLOCK_C]
    source = batch * state_stride_b + time * state_stride_t + place * state_stride_p
    at = states + source[:, None] + channel[None, :] * state_stride_c
    value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    # [BLOCK_C]
    weight = tl.load(gamma + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32) * scale
    length = tl.maximum(tl.sqrt(tl.sum(value * value, axis=1)), 1e-12)
    value = value / length[:, None] * weight[None, :]
    value = value / (1 + tl.exp(-value))
    target = batch * out_stride_b + time * out_stride_t + place * out_stride_p
    at = out + target[:, None] + channel[None, :] * out_stride_c
    tl.store(at, value.to(out.dtype.element_ty), mask=mask)


def launch_norm_silu(states: Tensor, gamma: Tensor, scale: float, out: Tensor) -> None:
    """`norm_silu` of a tensor whose rows of pixels follow each other without gaps."""
    batch, channels, frames, height, width = states.shape
    if states.stride(3) != width * states.stride(4):
        states = states.contiguous()
    assert out.stride(3) == width * out.stride(4)
    block_c = triton.next_power_of_2(channels)
    block_p = max(1, _TILE_VALUES // block_c)
    num_pixels = batch * frames * height * width
    _norm_silu_kernel[(triton.cdiv(num_pixels, block_p),)](
        states, gamma, out, float(scale), num_pixels, height * width,
        *(states.stride(axis) for axis in (0, 1, 2, 4)), *(out.stride(axis) for axis in (0, 1, 2, 4)), frames,
        CHANNELS=channels, BLOCK_C=block_c, BLOCK_P=block_p,
    )  # fmt: skip


@triton.jit
def add_norm_kernel(
    hidden, change, gate, factor, shift, added, normed,
    item_tokens, gate_stride, factor_stride, shift_stride, eps,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, TOKENS: tl.constexpr,
    ADDS: tl.constexpr, GATES: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    token, item = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    is_channel = channel < CHANNELS
    mask = (token < item_tokens)[:, None] & is_channel[None, :]
    place = (item * item_tokens + token)[:, None] * CHANNELS + channel[None, :]
    # [TOKENS, BLOCK_C]
    value = tl.load(hidden + place, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        more = tl.load(change + place, mask=mask, other=0.0).to(tl.float32)
        if GATES:
            gates = tl.load(gate + item * gate_stride + channel, mask=is_channel, other=0.0).to(tl.float32)
            more *= gates[None, :]
        rounded = (value + more).to(added.dtype.element_ty)
        tl.store(added + place, rounded, mask=mask)
        value = rounded.to(tl.float32)
    if NORMS:
        mean = tl.sum(value, axis=1) / CHANNELS
        value = tl.where(mask, value - mean[:, None], 0.0)
        value = value / tl.sqrt(tl.sum(value * value, axis=1) / CHANNELS + eps)[:, None]
        # Two [BLOCK_C], for all tokens.
        scale = tl.load(factor + item * factor_stride + channel, mask=is_channel, other=0.0).to(tl.float32)
        offset = tl.load(shift + item * shift_stride + channel, mask=is_channel, other=0.0).to(tl.float32)
        value = value * scale[None, :] + offset[None, :]
        tl.store(normed + place, value.to(normed.dtype.element_ty), mask=mask)


def launch_add_norm(
    hidden: Tensor, change: Tensor | None, gate: Tensor | None,
    factor: Tensor | None = None, shift: Tensor | None = None, eps: float = 0.0, *, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`add_norm`; without a change the sum, and without a factor the norm, are `hidden` itself.

    Args:
        out: Receives the sum.
    """
    items, tokens, channels = hidden.shape
    hidden = hidden.contiguous()
    added = hidden if change is None else torch.empty_like(hidden) if out is None else out
    normed = hidden if factor is None else torch.empty_like(hidden)

    def rows(vector: Tensor | None) -> tuple[Tensor, int]:
        """A vector an item, or one for all of them, and how far the next is."""
        if vector is None:
            return hidden, 0
        assert vector.stride(-1) == 1
        return vector, vector.stride(0) if vector.ndim == 3 and len(vector) > 1 else 0

    (gate_, gate_stride), (factor_, factor_stride), (shift_, shift_stride) = map(rows, (gate, factor, shift))
    add_norm_kernel[(triton.cdiv(tokens, _NORM_TOKENS), items)](
        hidden, hidden if change is None else change.contiguous(), gate_, factor_, shift_, added, normed,
        tokens, gate_stride, factor_stride, shift_stride, float(eps),
        CHANNELS=channels, BLOCK_C=triton.next_power_of_2(channels), TOKENS=_NORM_TOKENS,
        ADDS=change is not None, GATES=gate is not None, NORMS=factor is not None, num_warps=_NORM_WARPS,
    )  # fmt: skip
    return added, normed


@triton.jit
def norm_joined_kernel(
    joined, query_weight, key_weight, query, key, value, eps, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr
):
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, BLOCK_C)
    mask = channel < CHANNELS
    place = token * CHANNELS + channel
    # [BLOCK_C]
    row = tl.load(joined + (3 * token + part) * CHANNELS + channel, mask=mask, other=0.0).to(tl.float32)
    normed = row / tl.sqrt(tl.sum(row * row, axis=0) / CHANNELS + eps)
    if part == 0:
        weight = tl.load(query_weight + channel, mask=mask, other=0.0).to(tl.float32)
        tl.store(query + place, (normed * weight).to(query.dtype.element_ty), mask=mask)
    elif part == 1:
        weight = tl.load(key_weight + channel, mask=mask, other=0.0).to(tl.float32)
        tl.store(key + place, (normed * weight).to(key.dtype.element_ty), mask=mask)
    else:
        tl.store(value + place, row.to(value.dtype.element_ty), mask=mask)


def launch_norm_joined(
    joined: Tensor, query_weight: Tensor, key_weight: Tensor, eps: float, out: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """`norm_joined`, to three tensors without gaps."""
    *shape, width = joined.shape
    channels = width // 3
    parts = tuple(part.view(*shape, channels) for part in out or joined.new_empty(3, *shape, channels))
    assert joined.is_contiguous()
    norm_joined_kernel[(joined.numel() // width, 3)](
        joined, query_weight, key_weight, *parts, float(eps),
        CHANNELS=channels, BLOCK_C=triton.next_power_of_2(channels),
    )  # fmt: skip
    return parts
