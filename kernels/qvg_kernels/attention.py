"""Attention over a history that is kept packed: read into one bounded workspace, attended, reused.

Torch reference. The history is never expanded whole: heads go through in groups, and where even one head's
keys exceed the workspace, spans of keys do, merged by their running (maximum, sum, output). Invariant: the
result does not depend on the workspace's size beyond the rounding of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

DEFAULT_WORKSPACE_BYTES = 256 * 2**20
_QUERY_BLOCK = 1024


class Segment(Protocol):
    """A run of keys and values that is read as a whole or in parts, packed or not."""

    @property
    def num_tokens(self) -> int:
        """Keys in the segment."""
        ...

    def read(self, heads: slice, tokens: slice) -> tuple[Tensor, Tensor]:
        """Keys, rotated to their positions, and values of a part: two `[B, h, s, D]`."""
        ...


class Workspace:
    """Buffers for decoded keys and values, allocated once and shared by all layers.

    Args:
        limit_bytes: Keys and values together never take more, except that one token of one head always fits.
    """

    def __init__(self, limit_bytes: int = DEFAULT_WORKSPACE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._buffer: Tensor | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes allocated so far."""
        return 0 if self._buffer is None else self._buffer.numel() * self._buffer.element_size()

    def views(self, shape: tuple[int, int, int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """Two uninitialised `[B, h, s, D]` views in the dtype and on the device of `like`."""
        count = math.prod(shape)
        buffer = self._buffer
        if (
            buffer is None
            or buffer.dtype != like.dtype
            or buffer.device != like.device
            or buffer.numel() < 2 * count
        ):
            self._buffer = buffer = None
            self._buffer = buffer = torch.empty(2 * count, dtype=like.dtype, device=like.device)
        return buffer[:count].view(shape), buffer[count : 2 * count].view(shape)

    def part_sizes(self, query: Tensor, num_tokens: int) -> tuple[int, int]:
        """Heads and tokens that fit at once for `[B, H, S, D]` queries: all keys of some, or some of one."""
        batch, heads, _, head_dim = query.shape
        token_bytes = 2 * batch * head_dim * query.element_size()
        tokens = max(1, min(num_tokens, self.limit_bytes // token_bytes))
        return max(1, min(heads, self.limit_bytes // (token_bytes * num_tokens))), tokens


def attend(query: Tensor, segments: Sequence[Segment], workspace: Workspace) -> Tensor:
    """Softmax attention of all queries to all keys of all segments, without a mask.

    Args:
        query: `[B, H, S, D]`, rotated.
        segments: At least one key in all.
        workspace: Where keys and values are read to; its limit decides the grouping.

    Returns:
        `[B, H, S, D]` in the dtype of `query`; sums are kept in float32.
    """
    num_tokens = sum(segment.num_tokens for segment in segments)
    group_heads, part_tokens = workspace.part_sizes(query, num_tokens)
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


def _read_parts(
    query: Tensor, heads: slice, segments: Sequence[Segment], part_tokens: int, workspace: Workspace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fill the workspace with up to `part_tokens` keys at a time; a part is valid until the next."""
    remaining = sum(segment.num_tokens for segment in segments)
    batch, group_heads, _, head_dim = query.shape
    part_tokens = min(part_tokens, remaining)
    key, value = workspace.views((batch, group_heads, part_tokens, head_dim), query)
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
