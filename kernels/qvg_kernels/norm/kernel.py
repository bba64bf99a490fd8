"""`norm_silu` as a kernel: a program reads some pixels with all their channels and writes them once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_TILE_VALUES = 8192
"""Values of a program: of 96 channels, 64 pixels."""


@triton.jit
def _norm_silu_kernel(
    states,
    gamma,
    out,
    scale,
    num_pixels,
    frame_pixels,
    state_stride_b,
    state_stride_c,
    state_stride_t,
    state_stride_p,
    out_stride_b,
    out_stride_c,
    out_stride_t,
    out_stride_p,
    num_frames,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    is_pixel = pixel < num_pixels
    mask = is_pixel[:, None] & (channel < CHANNELS)[None, :]
    frame = pixel // frame_pixels
    place, batch, time = pixel % frame_pixels, frame // num_frames, frame % num_frames
    # [BLOCK_P, BLOCK_C]
    source = batch * state_stride_b + time * state_stride_t + place * state_stride_p
    value = tl.load(states + source[:, None] + channel[None, :] * state_stride_c, mask=mask, other=0.0).to(
        tl.float32
    )
    # [BLOCK_C]
    weight = tl.load(gamma + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32) * scale
    length = tl.maximum(tl.sqrt(tl.sum(value * value, axis=1)), 1e-12)
    value = value / length[:, None] * weight[None, :]
    value = value / (1 + tl.exp(-value))
    target = batch * out_stride_b + time * out_stride_t + place * out_stride_p
    tl.store(
        out + target[:, None] + channel[None, :] * out_stride_c, value.to(out.dtype.element_ty), mask=mask
    )


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
        states,
        gamma,
        out,
        float(scale),
        num_pixels,
        height * width,
        *(states.stride(axis) for axis in (0, 1, 2, 4)),
        *(out.stride(axis) for axis in (0, 1, 2, 4)),
        frames,
        CHANNELS=channels,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
    )
