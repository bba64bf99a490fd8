"""Rotary positions of video tokens, by the id of their frame."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qvg_cli.planning.chunks import Frames
from qvg_kernels.rope.placement import Rotary
from qvg_kernels.rope.tables import RotaryTables


@dataclass(frozen=True)
class FrameRotation:
    """Rotation of tokens by frame, row and column.

    Attributes:
        rows: Tokens of a frame, from top to bottom.
        columns: Tokens of a frame, from left to right.
        view: Frames that have a position of their own; the others are never read.
        positions: Time position of each frame in `view`; `None` stands every frame at its own number.
    """

    tables: RotaryTables
    rows: int
    columns: int
    view: Frames = ()
    positions: Frames | None = None

    @property
    def tokens_per_frame(self) -> int:
        return self.rows * self.columns

    def placement(self, frames: Frames) -> Rotary:
        if self.positions is not None:
            position_of = dict(zip(self.view, self.positions, strict=True))
            frames = tuple(position_of.get(frame, 0) for frame in frames)
        return Rotary(self.tables, self.rows, self.columns, frames)

    def rotate(self, query: Tensor, frames: Frames) -> Tensor:
        """All queries `[B, H, S, D]` of `frames`, rotated."""
        return self.placement(frames).apply(query, slice(0, query.shape[2]))
