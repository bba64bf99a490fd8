"""One model call over several processes: its tokens are split, and each attends with some of the heads.

What concerns a token alone (projections, text, feed-forward) is computed where the token is. Before attention
the queries, keys and values are exchanged, so that each process has all tokens of its heads, and holds their
history. A head's bytes depend on no other head, so a cache is the one of a single process, cut by heads.

Source: DeepSpeed-Ulysses, arXiv 2309.14509.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional


class Tokens:
    """Who computes the tokens and the heads of a call: this process alone, or as a `SequenceGroup` several.

    Every frame has P tokens, of which p are here, and F frames pass through the model.

    Attributes:
        size: How many processes there are.
        rank: Number of this process among them.
    """

    size: int = 1
    rank: int = 0

    def split(self, states: Tensor, frame_tokens: int) -> Tensor:
        """Of `[B, F * P, C]` those of this process, `[B, F * p, C]`: some of every frame."""
        return states

    def gather(self, states: Tensor, frame_tokens: int) -> Tensor:
        """All tokens `[B, F * P, C]` of those of every process."""
        return states

    def to_heads(self, states: Sequence[Tensor], frame_tokens: int) -> tuple[Tensor, ...]:
        """Each `[B, H, F * p, D]` of some tokens to `[B, H / N, F * P, D]` of some heads, in one exchange."""
        return tuple(states)

    def to_tokens(self, states: Sequence[Tensor], frame_tokens: int) -> tuple[Tensor, ...]:
        """Each `[B, F * P, H / N, D]` of some heads to `[B, F * p, H * D]` of some tokens, in one too."""
        return tuple(each.flatten(2) for each in states)

    def to_held(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of each `[B, H / N, S, D]` the heads whose history is held here."""
        return tuple(states)


@dataclass(frozen=True)
class SequenceGroup(Tokens):
    """Several processes, of which each has as many tokens of a frame; the last has zeros for those that lack.

    Attributes:
        twins: Processes that hold the history of the same heads, and share their passes; `None` if this one
            alone holds them.
    """

    group: dist.ProcessGroup
    rank: int
    size: int
    twins: dist.ProcessGroup | None = None
    num_twins: int = 1

    def split(self, states: Tensor, frame_tokens: int) -> Tensor:
        by_frame = self._padded(states.unflatten(1, (-1, frame_tokens)))
        return by_frame.chunk(self.size, dim=2)[self.rank].flatten(1, 2)

    def gather(self, states: Tensor, frame_tokens: int) -> Tensor:
        parts = _gather(states, self.group, self.size)
        by_frame = [part.unflatten(1, (-1, self._own(frame_tokens))) for part in parts]
        return torch.cat(by_frame, dim=2)[:, :, :frame_tokens].flatten(1, 2)

    def to_heads(self, states: Sequence[Tensor], frame_tokens: int) -> tuple[Tensor, ...]:
        # Twins stand N / R processes apart, and have neighbouring heads: [R, N / R, K, B, h, F * p, D].
        by_process = [each.unflatten(1, (-1, self.num_twins, each.shape[1] // self.size)) for each in states]
        parts = self._exchange(torch.stack([each.movedim((2, 1), (0, 1)) for each in by_process], dim=2))
        # [N, K, B, h, F * p, D] to [K, B, h, F, N * p, D]
        by_frame = parts.flatten(0, 1).unflatten(4, (-1, self._own(frame_tokens)))
        whole = by_frame.permute(1, 2, 3, 4, 0, 5, 6).flatten(4, 5)
        return tuple(whole[:, :, :, :, :frame_tokens].flatten(3, 4))

    def to_tokens(self, states: Sequence[Tensor], frame_tokens: int) -> tuple[Tensor, ...]:
        by_frame = [self._padded(each.unflatten(1, (-1, frame_tokens))) for each in states]
        # [R, N / R, K, B, F, p, h, D]
        by_process = [each.unflatten(2, (self.num_twins, -1, self._own(frame_tokens))) for each in by_frame]
        parts = self._exchange(torch.stack([each.movedim((2, 3), (0, 1)) for each in by_process], dim=2))
        # [K, B, F * p, N / R * R * h * D]
        return tuple(parts.permute(2, 3, 4, 5, 1, 0, 6, 7).flatten(4).flatten(2, 3))

    def to_held(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self.twins is None:
            return tuple(states)
        return tuple(torch.cat(_gather(torch.stack(list(states)), self.twins, self.num_twins), dim=2))

    def _own(self, frame_tokens: int) -> int:
        return -(-frame_tokens // self.size)

    def _exchange(self, parts: Tensor) -> Tensor:
        """Send the i-th part to the i-th process, and take one from each."""
        received = torch.empty_like(parts)
        dist.all_to_all_single(received.flatten(0, 1), parts.flatten(0, 1), group=self.group)
        return received

    def _padded(self, by_frame: Tensor) -> Tensor:
        """`[B, F, P, ...]` with zeros after the tokens of a frame, so that these divide."""
        missing = -by_frame.shape[2] % self.size
        if not missing:
            return by_frame
        return functional.pad(by_frame, (*[0, 0] * (by_frame.ndim - 3), 0, missing))


def _gather(states: Tensor, group: dist.ProcessGroup, size: int) -> list[Tensor]:
    """`states` of every process."""
    parts = [torch.empty_like(states, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, states.contiguous(), group=group)
    return parts


class Rows:
    """Who computes the rows of a guided step: this process alone, or as a `CfgGroup` two.

    Attributes:
        together: Who computes a call that has one row, if not those that compute a row.
    """

    together: Tokens | None = None

    def compute(self, predict: Callable[[slice], Tensor], num_rows: int) -> Tensor:
        """Predictions `[num_rows, ...]`; `predict` makes those of some rows."""
        return predict(slice(0, num_rows))


@dataclass(frozen=True)
class CfgGroup(Rows):
    """Two processes, of which each, by its rank, makes one of two rows; `together` they compute one row."""

    group: dist.ProcessGroup
    rank: int
    together: Tokens | None

    def compute(self, predict: Callable[[slice], Tensor], num_rows: int) -> Tensor:
        own = predict(slice(self.rank, self.rank + 1))
        return torch.cat(_gather(own, self.group, num_rows))
