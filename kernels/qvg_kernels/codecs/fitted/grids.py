"""The levels that a rotated residual is rounded to, and how their codes lie in bytes.

Invariant: levels are integers that int8 holds exactly, symmetric about zero; `read(write(levels)) == levels`.
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from qvg_kernels.codecs.fitted.spec import GridName
from qvg_kernels.quant import bitpack, lattice, roots


@cache
def _on_device(levels: tuple[int, ...], device: torch.device) -> Tensor:
    """Levels as float32; kept, since a copy to a GPU waits for its queue."""
    return torch.tensor(levels, dtype=torch.float32, device=device)


class ScalarGrid:
    """Every value by itself: the nearest of a few integer levels.

    Attributes:
        levels: Integers, ascending.
        step: Distance of one unit of the levels in standard deviations of the values, before it is refined
            for each token.
    """

    def __init__(self, levels: tuple[int, ...], step: float) -> None:
        self.levels = levels
        self.step = step

    def quantize(self, values: Tensor) -> Tensor:
        """Levels for `[S, D]` values of unit variance, float32 integers of the same shape.

        Each token's step is refined once by least squares before the final rounding; the caller fits its
        scale to the levels afterwards.
        """
        levels = _on_device(self.levels, values.device)
        bounds = (levels[1:] + levels[:-1]) / 2
        rounded = levels[torch.bucketize(values / self.step, bounds)]
        fitted = (values * rounded).sum(-1, keepdim=True) / rounded.square().sum(-1, keepdim=True).clamp(
            min=1e-9
        )
        return levels[torch.bucketize(values / fitted.clamp(min=1e-9), bounds)]

    def _indices(self, levels: Tensor) -> Tensor:
        return torch.searchsorted(_on_device(self.levels, levels.device), levels).to(torch.uint8)

    def write(self, levels: Tensor) -> Tensor:
        """Pack indices of `[S, D]` levels into `[rows, bytes]` uint8, as `bitpack` says for their bits."""
        indices = self._indices(levels)
        if len(self.levels) == 8:
            return torch.cat([bitpack.pack(indices & 3, 2), bitpack.pack(indices >> 2, 1)], -1)
        return bitpack.pack(indices, (len(self.levels) - 1).bit_length())

    def read(self, codes: Tensor, start: int, stop: int, head_dim: int) -> Tensor:
        """Levels of tokens `start` to `stop`, `[..., stop - start, D]` float32, from `[..., rows, bytes]`."""
        codes = codes[..., start:stop, :]
        if len(self.levels) == 8:
            low, high = codes[..., : head_dim // 4], codes[..., head_dim // 4 :]
            indices = bitpack.unpack(low, 2) | (bitpack.unpack(high, 1) << 2)
        else:
            indices = bitpack.unpack(codes, (len(self.levels) - 1).bit_length())
        return _on_device(self.levels, codes.device)[indices.long()]


class TritGrid(ScalarGrid):
    """Three levels, five tokens a byte: 1.6 bits a value."""

    def write(self, levels: Tensor) -> Tensor:
        return bitpack.pack_trits(self._indices(levels))

    def read(self, codes: Tensor, start: int, stop: int, head_dim: int) -> Tensor:
        return bitpack.unpack_trits(codes, start, stop).float() - 1.0


class LatticeGrid:
    """Eight neighbouring values together: the nearest of many points of a lattice.

    Attributes:
        points: `lattice`, 65,280 points at two bits a value, or `roots`, 256 at one.
    """

    def __init__(self, points: ModuleType) -> None:
        self.points = points
        self.step: float = points.STEP

    def quantize(self, values: Tensor) -> Tensor:
        levels: Tensor = self.points.nearest(values / self.step)
        return levels

    def write(self, levels: Tensor) -> Tensor:
        codes: Tensor = self.points.pack(levels)
        return codes

    def read(self, codes: Tensor, start: int, stop: int, head_dim: int) -> Tensor:
        levels: Tensor = self.points.unpack(codes[..., start:stop, :])
        return levels


Grid = ScalarGrid | LatticeGrid


@cache
def grid(name: GridName) -> Grid:
    """The grid that a spec names."""
    # Steps and levels are those of the best Gaussian quantiser (Max 1960, Lloyd 1982), the levels rounded to
    # integers: 3 and 4 levels lose nothing and 0.05 dB, 8 and 16 less than 0.02 dB.
    grids: dict[GridName, Grid] = {
        "e8x1": LatticeGrid(roots),
        "trit": TritGrid((-1, 0, 1), 1.224),
        "int2": ScalarGrid((-3, -1, 1, 3), 0.498),
        "e8": LatticeGrid(lattice),
        "int3": ScalarGrid((-17, -11, -6, -2, 2, 6, 11, 17), 0.125),
        "int4": ScalarGrid((-21, -16, -13, -10, -7, -5, -3, -1, 1, 3, 5, 7, 10, 13, 16, 21), 0.129),
    }
    return grids[name]
