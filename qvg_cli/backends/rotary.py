"""Rotary positions of video tokens, by the id of their frame."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qvg_cli.cache.policy import Frames
from qvg_kernels.rope.placement import Rotary
from qvg_kernels.rope.tables import RotaryTables


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

    def placement(self, frames: Frames) -> Rotary:
        """Where the tokens of `frames` stand."""
        slots = tuple(frame - self.first_frame for frame in frames)
        return Rotary(self.tables, self.rows, self.columns, slots)

    def rotate(self, query: Tensor, frames: Frames) -> Tensor:
        """All queries `[B, H, S, D]` of `frames`, rotated."""
        return self.placement(frames).apply(query, slice(0, query.shape[2]))
