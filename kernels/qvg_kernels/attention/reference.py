"""Attention over a history that is kept packed: read into one bounded workspace, attended, reused.

The history is never expanded whole. The torch reference is here, the kernels are beside it.
Invariant: the result does not depend on the workspace's size beyond the rounding of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from qvg_kernels.attention.history import GivenSegment, History, Segment
from qvg_kernels.attention.workspace import Workspace
from qvg_kernels.runtime.dispatch import uses_kernels, why_reference
from qvg_kernels.spec import CodecSpec

Arithmetic = Literal["auto", "int8", "fp8", "bf16"]
"""How packed history is multiplied, if its codec is coarser than e4m3; else it is in bf16.

"int8" is that for queries and keys, with bf16 weights and values; "fp8" has e4m3 weights and values beside
them. "auto" is "int8" on Hopper GPUs, which are faster so (docs/results.md), else "fp8" on GPUs that
have it.
"""

_QUERY_BLOCK = 1024


def how_attended(
    device: torch.device, dtype: torch.dtype, specs: Sequence[CodecSpec], arithmetic: Arithmetic
) -> str:
    """What `attend` does with a history packed by `specs`, in words that follow "attention by"."""
    reason = why_reference(device)
    if reason is None and dtype == torch.float32:
        reason = "float32"
    if reason is None:
        from qvg_kernels.attention.operands import BF16, choose
        from qvg_kernels.codecs.layouts import layout_of

        layouts = [layout_of(spec, 128) for spec in specs]
        if all(layout is not None for layout in layouts):
            is_packed = all(layout is not None and layout.is_packed for layout in layouts)
            operands = choose(arithmetic, device, dtype) if is_packed else BF16
            return f"Triton kernels, packed history multiplied in {operands.words}"
        reason = "a scheme without kernels"
    return f"the torch reference ({reason})"


def attend(
    query: Tensor,
    history: History,
    given: GivenSegment,
    workspace: Workspace,
    arithmetic: Arithmetic = "auto",
) -> Tensor:
    """Softmax attention of all queries to all keys of the history and of the chunk itself, without a mask.

    Args:
        query: `[B, H, S, D]`, placed.
        workspace: Where keys and values are read to; its limit decides the grouping.

    Returns:
        `[B, H, S, D]` in the dtype of `query`; sums are kept in float32. Where the library attends to the
        chunk's own keys (`fused`), its output is rounded to that dtype before it is merged.
    """
    if uses_kernels(query.device) and query.dtype != torch.float32:
        from qvg_kernels.attention import packed as attention
        from qvg_kernels.attention.operands import choose

        operands = choose(arithmetic, query.device, query.dtype)
        output = attention.attend(query, history, given, workspace, operands)
        if output is not None:
            return output
    return attend_segments(query, [*history.segments, given], workspace)


def attend_segments(query: Tensor, segments: Sequence[Segment], workspace: Workspace) -> Tensor:
    """`attend` in torch: a few heads at a time.

    Of one head whose keys exceed the workspace, runs of keys, merged by a running (maximum, sum, output).
    """
    num_tokens = sum(segment.num_tokens for segment in segments)
    group_heads, part_tokens = _part_sizes(query, num_tokens, workspace.limit_bytes)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for first in range(0, query.shape[1], group_heads):
        heads = slice(first, min(first + group_heads, query.shape[1]))
        parts = _read_parts(query[:, heads], heads, segments, part_tokens, workspace)
        if part_tokens >= num_tokens:
            key, value = next(parts)
            output[:, heads] = functional.scaled_dot_product_attention(query[:, heads], key, value)
        else:
            output[:, heads] = _attend_parts(query[:, heads], parts)
    return output


def _part_sizes(query: Tensor, num_tokens: int, limit_bytes: int) -> tuple[int, int]:
    """Heads and tokens that fit at once for `[B, H, S, D]` queries: all keys of some, or some of one.

    One token of one head is read even if it does not fit.
    """
    batch, heads, _, head_dim = query.shape
    token_bytes = 2 * batch * head_dim * query.element_size()
    tokens = max(1, min(num_tokens, limit_bytes // token_bytes))
    return max(1, min(heads, limit_bytes // (token_bytes * num_tokens))), tokens


def _read_parts(
    query: Tensor, heads: slice, segments: Sequence[Segment], part_tokens: int, workspace: Workspace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fill the workspace with up to `part_tokens` keys at a time; a part is valid until the next."""
    remaining = sum(segment.num_tokens for segment in segments)
    batch, group_heads, _, head_dim = query.shape
    part_tokens = min(part_tokens, remaining)
    shape = (2, batch, group_heads, part_tokens, head_dim)
    buffer = workspace.take(math.prod(shape) * query.element_size(), query.device)
    key, value = buffer.view(query.dtype).view(shape)
    filled = 0
    for segment in segments:
        start = 0
        while start < segment.num_tokens:
            stop = min(segment.num_tokens, start + part_tokens - filled)
            segment_key, segment_value = segment.read(heads, slice(start, stop))
            key[:, :, filled : filled + stop - start] = segment_key
            value[:, :, filled : filled + stop - start] = segment_value
            filled, start = filled + stop - start, stop
            if filled == part_tokens:
                yield key, value
                filled = 0
    if filled:
        yield key[:, :, :filled], value[:, :, :filled]


def _attend_parts(query: Tensor, parts: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over parts of the keys, with a running maximum, sum and output in float32."""
    batch, heads, length, head_dim = query.shape
    maximum = query.new_full((batch, heads, length, 1), -math.inf, dtype=torch.float32)
    denominator = torch.zeros_like(maximum)
    output = query.new_zeros((batch, heads, length, head_dim), dtype=torch.float32)
    for key, value in parts:
        for start in range(0, length, _QUERY_BLOCK):
            rows = slice(start, start + _QUERY_BLOCK)
            logits = (query[:, :, rows] @ key.transpose(-1, -2)).float() * head_dim**-0.5
            new_maximum = torch.maximum(maximum[:, :, rows], logits.amax(dim=-1, keepdim=True))
            weights = torch.exp(logits - new_maximum)
            decay = torch.exp(maximum[:, :, rows] - new_maximum)
            denominator[:, :, rows] = denominator[:, :, rows] * decay + weights.sum(dim=-1, keepdim=True)
            output[:, :, rows] = output[:, :, rows] * decay + (weights.to(value.dtype) @ value).float()
            maximum[:, :, rows] = new_maximum
    return (output / denominator).to(query.dtype)
