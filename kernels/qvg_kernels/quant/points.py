"""The values that the encoding kernels read: a span's heads, shifted and scaled in registers when loaded.

Invariant: nothing that the kernels make of a head depends on which other heads a launch has: axis 1 of every
grid is the head, and how its tokens are cut depends on their number alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Points:
    """Heads of one span, and where the channels stand.

    Attributes:
        span: `[H, S, D]` of a floating dtype, any strides but the last.
        offset: `[H, D]` float32 that is subtracted from each channel; none for values as they are.
        inverse: `[H, D]` float32 that multiplies each channel afterwards, given with `offset`.
    """

    span: Tensor
    offset: Tensor | None = None
    inverse: Tensor | None = None

    @property
    def heads(self) -> int:
        """Heads of the span."""
        return self.span.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens of the span."""
        return self.span.shape[1]

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.span.shape[2]

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor on the span's device that a kernel fills, with the heads before `shape`."""
        return torch.empty(self.heads, *shape, dtype=dtype, device=self.span.device)


@triton.jit
def load_tokens(span, head_stride, token_stride, tokens, is_token, HEAD_DIM: tl.constexpr):
    """`[BLOCK_S, HEAD_DIM]` of the program's head as stored; 0 where `is_token` does not hold."""
    at = span + tl.program_id(1).to(tl.int64) * head_stride
    at += tokens[:, None].to(tl.int64) * token_stride + tl.arange(0, HEAD_DIM)[None, :]
    return tl.load(at, mask=is_token[:, None], other=0.0)


@triton.jit
def centred(values, offset, inverse, HEAD_DIM: tl.constexpr):
    """Float32 of what `load_tokens` gave, shifted and scaled as `Points` says."""
    values = values.to(tl.float32)
    if offset is not None:
        # Vectors, so that every thread reads its own channels: rows of a matrix would be read in a layout
        # of their own, and the values go through shared memory to meet them.
        at = tl.program_id(1) * HEAD_DIM + tl.arange(0, HEAD_DIM)
        values = (values - tl.load(offset + at)[None, :]) * tl.load(inverse + at)[None, :]
    return values
