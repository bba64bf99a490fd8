"""Where tokens stand, applied to keys and values whenever they are read: turned by place and time, or
multiplied by their camera.

Both kinds are plain data, so that a kernel can apply them while it decodes. Invariant: what happens to a
token depends on its number among the tokens of the frames alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qvg_kernels.runtime.dispatch import uses_kernels

ROPE_THETA = 10000.0


@dataclass(frozen=True, eq=False)
class RotaryTables:
    """Cosines and sines of all positions, computed in float64 and kept in float32.

    A head of `D` channels is split into time, row and column, `D - 4 * (D // 6)`, `2 * (D // 6)` and
    `2 * (D // 6)`, in adjacent pairs; each axis uses its own width in the exponent.

    Attributes:
        cosine: `[P, D // 2]`; row p holds every pair's cosine at position p of the pair's own axis.
        sine: Likewise.

    Source: Wan-Video/Wan2.1, `rope_params` in `wan/modules/model.py`; meituan-longcat/LongCat-Video splits a
    head the same way. Held outside the module tree, because `model.to(bfloat16)` would round them.
    """

    cosine: Tensor
    sine: Tensor

    @classmethod
    def of(cls, head_dim: int, num_positions: int, device: torch.device) -> RotaryTables:
        """Tables for positions 0 to `num_positions - 1`."""
        side = 2 * (head_dim // 6)
        positions = torch.arange(num_positions, dtype=torch.float64)
        angles = torch.cat(
            [
                torch.outer(
                    positions, ROPE_THETA ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
                )
                for width in (head_dim - 2 * side, side, side)
            ],
            dim=-1,
        )
        return cls(angles.cos().float().to(device), angles.sin().float().to(device))


@dataclass(frozen=True)
class Rotary:
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

    def apply(self, states: Tensor, tokens: slice) -> Tensor:
        """Placed `[B, H, S, D]`, which are `tokens` of the tokens of the frames; computed in float32."""
        if uses_kernels(states.device):
            from qvg_kernels.rope.kernels import apply_placement

            return apply_placement(self, states, tokens)
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


@dataclass(frozen=True, eq=False)
class FrameMatrices:
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

    def apply(self, states: Tensor, tokens: slice) -> Tensor:
        """Placed `[B, H, S, D]`, which are `tokens` of the tokens of the frames; computed in float32."""
        if uses_kernels(states.device):
            from qvg_kernels.rope.kernels import apply_placement

            return apply_placement(self, states, tokens)
        token = torch.arange(tokens.start or 0, tokens.stop, device=states.device)
        slot = on_device(self.slots, states.device)[token // self.tokens_per_frame]
        groups = states.float().unflatten(-1, (-1, 4))
        return torch.einsum("sij,bhsgj->bhsgi", self.matrices[slot], groups).flatten(-2).to(states.dtype)


Placement = Rotary | FrameMatrices
"""What happens to the tokens of given frames when they are read."""


@lru_cache(maxsize=256)
def on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """`[N]` int32 numbers; kept, since a copy to a GPU waits for its queue."""
    return torch.tensor(numbers, dtype=torch.int32, device=device)
