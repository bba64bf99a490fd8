"""One model call over several processes: its tokens are split, and each attends with some of the heads.

What concerns a token alone (projections, text, feed-forward) is computed where the token is. Before attention
the queries, keys and values are exchanged, so that each process has all tokens of its heads, and holds their
history. A head's bytes depend on no other head, so a cache is the one of a single process, cut by heads.

Source: DeepSpeed-Ulysses, arXiv 2309.14509.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional


class Tokens(Protocol):
    """Who computes the tokens and the heads of a call: this process alone, or several together.

    Every frame has P tokens, of which p are here, and F frames pass through the model.
    """

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    def split(self, states: Tensor, frame_tokens: int) -> Tensor:
        """Of `[B, F * P, C]` those of this process, `[B, F * p, C]`: some of every frame."""
        ...

    def gather(self, states: Tensor, frame_tokens: int) -> Tensor:
        """All tokens `[B, F * P, C]` of those of every process."""
        ...

    def to_heads(self, states: Tensor, frame_tokens: int) -> Tensor:
        """`[B, H, F * p, D]` of some tokens to `[B, H / N, F * P, D]` of some heads."""
        ...

    def to_tokens(self, states: Tensor, frame_tokens: int) -> Tensor:
        """`[B, H / N, F * P, D]` of some heads to `[B, H, F * p, D]` of some tokens."""
        ...


class AllTokens(Tokens):
    """All tokens and all heads here."""

    size = 1

    def split(self, states: Tensor, frame_tokens: int) -> Tensor:
        return states

    def gather(self, states: Tensor, frame_tokens: int) -> Tensor:
        return states

    def to_heads(self, states: Tensor, frame_tokens: int) -> Tensor:
        return states

    def to_tokens(self, states: Tensor, frame_tokens: int) -> Tensor:
        return states


@dataclass(frozen=True)
class SequenceGroup:
    """Several processes, of which each has as many tokens of a frame; the last has zeros for those that lack.

    Attributes:
        rank: Number of this process among them.
        size: How many there are.
    """

    group: dist.ProcessGroup
    rank: int
    size: int

    def split(self, states: Tensor, frame_tokens: int) -> Tensor:
        by_frame = self._padded(states.unflatten(1, (-1, frame_tokens)), 2)
        return by_frame.chunk(self.size, dim=2)[self.rank].flatten(1, 2)

    def gather(self, states: Tensor, frame_tokens: int) -> Tensor:
        parts = [torch.empty_like(states, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, states.contiguous(), group=self.group)
        by_frame = [part.unflatten(1, (-1, self._own(frame_tokens))) for part in parts]
        return torch.cat(by_frame, dim=2)[:, :, :frame_tokens].flatten(1, 2)

    def to_heads(self, states: Tensor, frame_tokens: int) -> Tensor:
        parts = self._exchange(states.unflatten(1, (self.size, -1)).movedim(1, 0))
        # [N, B, H / N, F, p, D] to [B, H / N, F, N * p, D]
        by_frame = parts.unflatten(3, (-1, self._own(frame_tokens))).permute(1, 2, 3, 0, 4, 5).flatten(3, 4)
        whole: Tensor = by_frame[:, :, :, :frame_tokens].flatten(2, 3)
        return whole

    def to_tokens(self, states: Tensor, frame_tokens: int) -> Tensor:
        by_frame = self._padded(states.unflatten(2, (-1, frame_tokens)), 3)
        parts = self._exchange(by_frame.unflatten(3, (self.size, -1)).movedim(3, 0))
        # [N, B, H / N, F, p, D] to [B, H, F * p, D]
        return parts.movedim(0, 1).flatten(1, 2).flatten(2, 3)

    def _own(self, frame_tokens: int) -> int:
        return -(-frame_tokens // self.size)

    def _exchange(self, parts: Tensor) -> Tensor:
        """Send the i-th part to the i-th process, and take one from each."""
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=self.group)
        return received

    def _padded(self, states: Tensor, axis: int) -> Tensor:
        """`states` with zeros after their tokens along `axis`, so that these divide."""
        missing = -states.shape[axis] % self.size
        if not missing:
            return states
        return functional.pad(states, (*[0, 0] * (states.ndim - 1 - axis), 0, missing))


class Rows(Protocol):
    """Who computes the rows of a guided step: this process alone, or two together."""

    def compute(self, predict: Callable[[slice], Tensor], num_rows: int) -> Tensor:
        """Predictions `[num_rows, ...]`; `predict` makes those of some rows."""
        ...


class AllRows(Rows):
    """All rows here, in one model call."""

    def compute(self, predict: Callable[[slice], Tensor], num_rows: int) -> Tensor:
        return predict(slice(0, num_rows))


@dataclass(frozen=True)
class CfgGroup(Rows):
    """Two processes, of which each makes one of two rows.

    Attributes:
        rank: Number of this process, and of its row.
    """

    group: dist.ProcessGroup
    rank: int

    def compute(self, predict: Callable[[slice], Tensor], num_rows: int) -> Tensor:
        own = predict(slice(self.rank, self.rank + 1)).contiguous()
        rows = [torch.empty_like(own) for _ in range(num_rows)]
        dist.all_gather(rows, own, group=self.group)
        return torch.cat(rows)
