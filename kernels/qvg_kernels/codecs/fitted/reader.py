"""Blocks of the scheme "fitted" read by kernels: those of grid "e8" by `decode_hopper` on Hopper GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton.language as tl
from torch import Tensor

from qvg_kernels.codecs.fitted.decode import fitted_decode_kernel
from qvg_kernels.codecs.fitted.grids import ScalarGrid, grid
from qvg_kernels.codecs.fitted.spec import FittedSpec
from qvg_kernels.codecs.reading import (
    BlockTable,
    DecodeTarget,
    HeadScales,
    Tiles,
    address,
    launch_decode,
    launch_measure,
    store_unit,
)
from qvg_kernels.quant import numbers
from qvg_kernels.rope.kernels import ROTARY
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import kernel


@kernel(do_not_specialize=["num_blocks"])
def fitted_unit_kernel(
    blocks, num_blocks, gain, units, smoothing,
    IS_KEY: tl.constexpr, PLACEMENT: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Bound from offsets and weights: a weight is the root of a channel's deviation.

    Eight deviations from the mean are taken for values, five for keys. A pair of channels that is turned
    reaches as far as it is long.

    Args:
        smoothing: `[B * H, HEAD_DIM]` of keys: each channel's, at most 1.
    """
    DEVIATIONS: tl.constexpr = 5.0 if IS_KEY else 8.0
    head = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, HEAD_DIM)
    bound = tl.full([HEAD_DIM // 2], 1.0e-20, tl.float32)
    for block in range(num_blocks):
        row = blocks + block * BLOCK_COLUMNS
        weight_bits = tl.load(address(row, 2, tl.uint8, head * HEAD_DIM) + channels)
        weight = numbers.e4m3_value(weight_bits) * tl.load(address(row, 4, tl.float32, head * 3 + 1))
        offset = tl.load(address(row, 3, tl.float32, head * HEAD_DIM) + channels)
        first, second = tl.split(tl.reshape(offset, [HEAD_DIM // 2, 2]))
        spread, other_spread = tl.split(tl.reshape(DEVIATIONS * weight * weight, [HEAD_DIM // 2, 2]))
        if PLACEMENT == ROTARY:
            found = tl.sqrt(first * first + second * second) + tl.maximum(spread, other_spread)
        else:
            found = gain * tl.maximum(tl.abs(first) + spread, tl.abs(second) + other_spread)
        bound = tl.maximum(bound, found)
    largest = tl.max(bound, 0)
    store_unit(units, head, largest, IS_KEY)
    if IS_KEY:
        # Half of the way to equal bounds: what keys gain queries lose.
        one = tl.full([HEAD_DIM // 2], 1.0, tl.float32)
        factor = tl.sqrt(bound / largest) if PLACEMENT == ROTARY else one
        both = tl.reshape(tl.join(factor, factor), [HEAD_DIM])
        tl.store(smoothing + head * HEAD_DIM + channels, tl.maximum(both, 1.0 / 64.0))


@dataclass(frozen=True)
class FittedReader:
    """Reads heads of `head_dim` channels."""

    spec: FittedSpec
    head_dim: int

    @property
    def codebook(self) -> str | None:
        return "table" if self.spec.num_centroids != 0 else None

    @property
    def tensors(self) -> tuple[str, ...]:
        shared = ("codes", "scales", "weights", "offset", "units", "phase")
        return (*shared, "ids", "table", "steps") if self.codebook else shared

    @property
    def is_coarse(self) -> bool:
        return self.spec.grid != "int4"

    def decode(self, blocks: BlockTable, tiles: Tiles, target: DecodeTarget) -> None:
        device, has_codebook = blocks.rows.device, self.codebook is not None
        is_narrow = target.is_transposed or target.is_reordered
        if self.spec.grid == "e8" and self.head_dim == 128 and launch.has_gluon(device) and not is_narrow:
            from qvg_kernels.codecs.fitted.decode_hopper import decode_lattice

            decode_lattice(blocks, tiles, target, has_codebook=has_codebook)
            return
        form = grid(self.spec.grid)
        scalar = form.levels if isinstance(form, ScalarGrid) else None
        words = numbers.lattice_sums(device) if scalar is None else _levels(scalar, device)
        launch_decode(
            fitted_decode_kernel, self.head_dim, blocks, tiles, target,
            words=words, flips=numbers.sign_flips(self.head_dim, device), GRID=self.spec.grid,
            ROW_BYTES=self.spec.code_shape(1, self.head_dim)[1], HAS_CODEBOOK=has_codebook,
        )  # fmt: skip

    def measure(self, blocks: BlockTable, *, is_key: bool) -> HeadScales:
        return launch_measure(fitted_unit_kernel, self.head_dim, blocks, is_key=is_key)


@lru_cache(maxsize=8)
def _levels(levels: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(levels, dtype=torch.int32, device=device)
