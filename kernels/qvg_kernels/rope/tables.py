"""Placements as numbers on a device: what both torch and the kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ROPE_THETA = 10000.0


def pair_speeds(head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Angle a position turns each pair of channels by, float64, of the pairs of time, row and column."""
    side = 2 * (head_dim // 6)
    time, row, column = (
        ROPE_THETA ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        for width in (head_dim - 2 * side, side, side)
    )
    return time, row, column


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
        positions = torch.arange(num_positions, dtype=torch.float64)
        angles = torch.outer(positions, torch.cat(pair_speeds(head_dim)))
        return cls(angles.cos().float().to(device), angles.sin().float().to(device))


@dataclass(frozen=True, eq=False)
class KernelPlacement:
    """A placement as kernels take it.

    Attributes:
        kind: 0 leaves values as they are, 1 turns pairs of channels, 2 multiplies groups of four.
        tables: For every slot, cosines and sines `[P, D]` float16, or a matrix `[P, 4, 4]` float32.
        spaces: Cosines and sines of every token of a frame, `[tokens_per_frame, D]` float16.
        gain: How much it may enlarge the largest value.
        slots: Row of `tables` of each frame.
    """

    kind: int
    tables: Tensor | None
    spaces: Tensor | None
    tokens_per_frame: int
    gain: float
    slots: tuple[int, ...]


UNPLACED = KernelPlacement(0, None, None, 1, 1.0, ())


@lru_cache(maxsize=8)
def half_tables(tables: RotaryTables, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """`KernelPlacement.tables` and `spaces`; float16 is finer than the bf16 that results are rounded to."""
    times = torch.cat([tables.cosine, tables.sine], dim=-1)
    pairs = tables.cosine.shape[1]
    is_column = torch.arange(2 * pairs, device=times.device) % pairs >= pairs - 2 * pairs // 6
    spaces = torch.where(is_column, times[:columns].unsqueeze(0), times[:rows].unsqueeze(1))
    return times.half(), spaces.flatten(0, 1).half()


@lru_cache(maxsize=16)
def by_fours(table: Tensor) -> Tensor:
    """`[..., D]` cosines, then sines, as four cosines and their sines in turn."""
    fours: Tensor = table.unflatten(-1, (2, -1, 4)).transpose(-3, -2).flatten(-3).contiguous()
    return fours


@lru_cache(maxsize=256)
def on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """`[N]` int32 numbers; kept, since a copy to a GPU waits for its queue."""
    return torch.tensor(numbers, dtype=torch.int32, device=device)
