"""Blocks packed by kernels: what the schemes share. A scheme fills its tensors some heads at a time.

The codecs are the torch reference. Invariant: a head's bytes are a function of its values, the spec and the
seed; nothing here waits on the host.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.codec import FiniteCheck
from qvg_kernels.codecs.spec import Spec
from qvg_kernels.quant.kmeans import random_starts
from qvg_kernels.quant.kmeans_kernels import kmeans
from qvg_kernels.quant.points import Points, load_tokens
from qvg_kernels.runtime.warmup import warm_up

GROUP_BYTES = 128 * 2**20
"""Values that are encoded at a time: the errors that a refit needs take as much again."""

Packed = tuple[dict[str, Tensor], FiniteCheck]
"""The tensors that a codec stores, and whether they are of any use."""

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype of each stored tensor and its shape after batch and heads."""

Fill = Callable[[Points, dict[str, Tensor], Tensor], None]
"""From the values of some heads to their tensors, all contiguous, and to what `codec.FiniteCheck` wants."""


def encode_heads(
    block: Tensor, spec: Spec, shapes: Shapes, fill: Fill, given: Mapping[str, Tensor] = MappingProxyType({})
) -> Packed:
    """Pack `[B, H, S, D]` values some heads at a time; kernels are warm from the second such block on.

    Args:
        given: Tensors `[B, H, ...]` that `fill` finds among those that it fills.
    """
    call = partial(_encode_heads, block, shapes, fill, given)
    warm_up(block.device, (spec, block.shape, block.stride(), block.dtype, block.device), call)
    return call()


def _encode_heads(block: Tensor, shapes: Shapes, fill: Fill, given: Mapping[str, Tensor]) -> Packed:
    batch, heads, tokens, head_dim = block.shape
    tensors = {
        name: torch.empty(batch, heads, *shape, dtype=dtype, device=block.device)
        for name, (dtype, shape) in shapes.items()
    }
    found = torch.empty(batch, heads, 3, dtype=torch.int32, device=block.device)
    size = max(1, GROUP_BYTES // (tokens * head_dim * block.element_size()))
    for item in range(batch):
        for first in range(0, heads, size):
            at = item, slice(first, first + size)
            target = {name: tensor[at] for name, tensor in (*tensors.items(), *given.items())}
            fill(Points(block[at]), target, found[at])
    return tensors, FiniteCheck(head_dim, found)


def draw_starts(tokens: int, count: int, stages: int, seed: int, device: torch.device) -> Tensor:
    """`[stages, count]` int32 token numbers that k-means starts from, drawn as the reference draws them."""
    starts = random_starts(tokens, count, stages, seed).int()
    # A copy from pinned memory does not wait for the GPU's queue.
    return starts.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else starts


def cluster(points: Points, starts: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Ids `[H, S]` uint8 and centroids `[H, K, D]` bf16 of k-means from `starts`."""
    ids = points.empty(points.tokens, dtype=torch.uint8)
    centroids = kmeans(points, starts, iterations, ids)
    return ids, centroids[:, : len(starts)].to(torch.bfloat16).contiguous()


@triton.jit
def residual_of(
    block, head_stride, token_stride, centroids, ids, count, num_tokens,
    HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr,
):  # fmt: skip
    """What bf16 centroids leave of the program's tokens: `[TILE_S, HEAD_DIM]` float32.

    Returns:
        Also the numbers of the tokens, and whether there are such tokens.
    """
    tokens = tl.program_id(0) * TILE_S + tl.arange(0, TILE_S)
    is_token = tokens < num_tokens
    head = tl.program_id(1)
    # [TILE_S, HEAD_DIM]
    values = load_tokens(block, head_stride, token_stride, tokens, is_token, HEAD_DIM).to(tl.float32)
    cluster = tl.load(ids + head.to(tl.int64) * num_tokens + tokens, mask=is_token, other=0).to(tl.int32)
    at = centroids + (head * count + cluster)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    return values - tl.load(at).to(tl.float32), tokens, is_token


@triton.jit
def store_codes(
    codes, levels, row, is_token, BITS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr
):
    """Store codes `[TILE_S, HEAD_DIM]`, float32 integers from 0, as `bitpack.pack` does."""
    EACH: tl.constexpr = 8 // BITS
    WIDTH: tl.constexpr = HEAD_DIM // EACH
    shifts = BITS * tl.arange(0, EACH)[None, None, :]
    packed = tl.sum(tl.reshape(levels.to(tl.int32), [TILE_S, WIDTH, EACH]) << shifts, 2)
    at = codes + row[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(at, packed.to(tl.uint8), mask=is_token[:, None])
