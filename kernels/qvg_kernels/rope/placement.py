"""Where tokens stand, applied to keys and values whenever they are read: turned by place and time, or
multiplied by their camera.

Both kinds are plain data, so that a kernel can apply them while it decodes. Invariant: what happens to a
token depends on its number among the tokens of the frames alone.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from qvg_kernels.rope.moments import placed_moment
from qvg_kernels.rope.tables import UNPLACED, KernelPlacement, RotaryTables, half_tables, on_device
from qvg_kernels.runtime.dispatch import uses_kernels


class Placement(ABC):
    """What happens to the tokens of given frames when they are read."""

    def apply(self, states: Tensor, tokens: slice) -> Tensor:
        """Placed `[B, H, S, D]`, which are `tokens` of the tokens of the frames; computed in float32.

        Args:
            states: Any strides but the last.
        """
        if not uses_kernels(states.device):
            return self._apply(states, tokens)
        from qvg_kernels.rope.kernels import copy_placed

        placed = torch.empty_like(states, memory_format=torch.contiguous_format)
        copy_placed(self.for_kernels(), states, tokens, placed)
        return placed

    @abstractmethod
    def _apply(self, states: Tensor, tokens: slice) -> Tensor:
        """`apply` in torch."""

    @abstractmethod
    def at_keys(self, moment: Tensor) -> Tensor:
        """The second moment of queries, `[..., D, D]` float64, in the space of keys that are not placed yet.

        Args:
            moment: Likewise, of queries that are not placed.
        """

    @abstractmethod
    def for_kernels(self) -> KernelPlacement:
        """The same as kernels take it."""


def form_of(placement: Placement | None) -> KernelPlacement:
    """A placement, if there is one, as kernels take it."""
    return UNPLACED if placement is None else placement.for_kernels()


@dataclass(frozen=True)
class Rotary(Placement):
    """Tokens turned by frame, row and column.

    Attributes:
        rows: Tokens of a frame, from top to bottom.
        columns: Tokens of a frame, from left to right.
        slots: Position in time of each frame.
    """

    tables: RotaryTables
    rows: int
    columns: int
    slots: tuple[int, ...]

    def _apply(self, states: Tensor, tokens: slice) -> Tensor:
        per_frame = self.rows * self.columns
        device = states.device
        token = torch.arange(tokens.start or 0, tokens.stop, device=device)
        place = token % per_frame
        pairs, side = states.shape[-1] // 2, states.shape[-1] // 6
        position = torch.stack(
            (on_device(self.slots, device)[token // per_frame], place // self.columns, place % self.columns)
        )
        axis = torch.arange(pairs, device=device)
        axis = (axis >= pairs - 2 * side).long() + (axis >= pairs - side).long()
        position = position[axis].T
        cosine, sine = (table.gather(0, position) for table in (self.tables.cosine, self.tables.sine))
        even, odd = states.float().unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
        return rotated.flatten(-2).to(states.dtype)

    def at_keys(self, moment: Tensor) -> Tensor:
        return placed_moment(moment, self.rows, self.columns)

    def for_kernels(self) -> KernelPlacement:
        times, spaces = half_tables(self.tables, self.rows, self.columns)
        # A pair keeps its length, which is at most the root of two times its larger value.
        return KernelPlacement(1, times, spaces, self.rows * self.columns, 2**0.5, self.slots)


@dataclass(frozen=True, eq=False)
class FrameMatrices(Placement):
    """Tokens whose groups of four channels are multiplied by the matrix of their frame.

    Attributes:
        matrices: `[P, 4, 4]` float32.
        gain: How much a matrix enlarges the largest of four values at most.
        slots: Row of `matrices` of each frame.
    """

    matrices: Tensor
    gain: float
    tokens_per_frame: int
    slots: tuple[int, ...]

    def _apply(self, states: Tensor, tokens: slice) -> Tensor:
        token = torch.arange(tokens.start or 0, tokens.stop, device=states.device)
        slot = on_device(self.slots, states.device)[token // self.tokens_per_frame]
        groups = states.float().unflatten(-1, (-1, 4))
        return torch.einsum("sij,bhsgj->bhsgi", self.matrices[slot], groups).flatten(-2).to(states.dtype)

    def at_keys(self, moment: Tensor) -> Tensor:
        """The same: cameras of neighbouring frames hardly differ."""
        return moment

    def for_kernels(self) -> KernelPlacement:
        return KernelPlacement(2, self.matrices, None, self.tokens_per_frame, self.gain, self.slots)
