"""Rotary positions of video tokens: a head's channels are split between time, row and column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qvg_cli.cache.policy import Frames

ROPE_THETA = 10000.0


class RotaryTables:
    """Cosines and sines of all positions of an axis, computed in float64 and kept in float32.

    A head of `D` channels is split into time, row and column, `D - 4 * (D // 6)`, `2 * (D // 6)` and
    `2 * (D // 6)`, in adjacent pairs; each axis uses its own width in the exponent.

    Source: Wan-Video/Wan2.1, `rope_params` in `wan/modules/model.py`; meituan-longcat/LongCat-Video splits a
    head the same way. Held outside the module tree, because `model.to(bfloat16)` would round them.
    """

    def __init__(self, head_dim: int, num_positions: int, device: torch.device) -> None:
        side = 2 * (head_dim // 6)
        positions = torch.arange(num_positions, dtype=torch.float64)
        angles = [
            torch.outer(positions, ROPE_THETA ** -(torch.arange(0, width, 2, dtype=torch.float64) / width))
            for width in (head_dim - 2 * side, side, side)
        ]
        self.cosines = [angle.cos().float().to(device) for angle in angles]
        self.sines = [angle.sin().float().to(device) for angle in angles]


@dataclass(frozen=True)
class FrameRotation:
    """Rotation of tokens by frame, row and column.

    Attributes:
        rows: Tokens of a frame, from top to bottom.
        columns: Tokens of a frame, from left to right.
        first_frame: Id of the frame at position 0; 0 makes positions absolute.
    """

    tables: RotaryTables
    rows: int
    columns: int
    first_frame: int = 0

    def rotate(self, keys: Tensor, frames: Frames, tokens: slice) -> Tensor:
        """Rotate `[B, h, s, D]`, which are `tokens` of the tokens of `frames`; computed in float32."""
        per_frame = self.rows * self.columns
        device = self.tables.cosines[0].device
        token = torch.arange(tokens.start or 0, tokens.stop, device=device)
        frame = torch.tensor(frames, device=device)[token // per_frame] - self.first_frame
        place = token % per_frame
        positions = (frame, place // self.columns, place % self.columns)
        cosine = torch.cat(
            [table[at] for table, at in zip(self.tables.cosines, positions, strict=True)], dim=-1
        )
        sine = torch.cat([table[at] for table, at in zip(self.tables.sines, positions, strict=True)], dim=-1)
        even, odd = keys.float().unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
        return rotated.flatten(-2).to(keys.dtype)
