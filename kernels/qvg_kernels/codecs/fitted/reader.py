"""Blocks of the scheme "fitted" read by kernels: those of two grids by `decode_hopper` on Hopper GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton.language as tl
from torch import Tensor

from qvg_kernels.codecs.fitted.decode import FOLDED, KEY, VALUE, begin, read
from qvg_kernels.codecs.fitted.grids import ScalarGrid, grid
from qvg_kernels.codecs.fitted.spec import GRID_BITS, FittedSpec
from qvg_kernels.codecs.reading import (
    BlockReader,
    BlockTable,
    DecodeTarget,
    HeadScales,
    Tiles,
    address,
    store_unit,
)
from qvg_kernels.quant import numbers
from qvg_kernels.rope.kernels import ROTARY
from qvg_kernels.rope.tables import on_device
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import kernel

SHAPING = {"none": tl.constexpr(0), "key": KEY, "value": VALUE}


@kernel(do_not_specialize=["num_blocks"])
def _unit_kernel(
    blocks, num_blocks, gain, units, smoothing,
    PLACEMENT: tl.constexpr, IS_FOLDED: tl.constexpr, IS_KEY: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Bound from offsets and weights: a weight is the root of a channel's deviation.

    Eight deviations from the mean are taken for values, five for keys. A pair of channels that is turned
    reaches as far as it is long. Values before their matrix may be larger than after it: eight times as much
    is left for that, which costs e4m3 nothing.

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
    store_unit(units, head, largest * 8.0 if IS_FOLDED else largest, IS_KEY)
    if IS_KEY:
        # Half of the way to equal bounds: what keys gain queries lose.
        one = tl.full([HEAD_DIM // 2], 1.0, tl.float32)
        factor = tl.sqrt(bound / largest) if PLACEMENT == ROTARY else one
        both = tl.reshape(tl.join(factor, factor), [HEAD_DIM])
        tl.store(smoothing + head * HEAD_DIM + channels, tl.maximum(both, 1.0 / 64.0))


@dataclass(frozen=True)
class FittedReader(BlockReader):
    """What reads the scheme's blocks; its settings are grid, bytes of a row of codes, whether there is a
    codebook, how errors are shaped.
    """

    @property
    def folds(self) -> bool:
        return bool(self.settings[3] == VALUE.value)

    def folded(self) -> FittedReader:
        return replace(self, settings=(*self.settings[:3], FOLDED.value))

    @classmethod
    def of(cls, spec: FittedSpec, head_dim: int) -> FittedReader:
        """What reads heads of `head_dim` channels."""
        has_codebook = spec.num_centroids != 0
        tensors: tuple[str, ...] = ("codes", "scales", "weights", "offset", "units", "phase")
        tensors += ("ids", "table", "steps") if has_codebook else ()
        tensors += ("matrix",) if spec.is_shaped else ()
        codebook = "table" if has_codebook else None
        row_bytes = spec.code_shape(1, head_dim)[1]
        settings = spec.grid, row_bytes, has_codebook, SHAPING[spec.shaping].value
        return cls(head_dim, tensors, codebook, spec.grid != "int4", settings, begin, read, is_scaled=True)

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        form = grid(self.settings[0])
        if isinstance(form, ScalarGrid):
            words = on_device(form.levels, device)
        else:
            words = numbers.word_sums(GRID_BITS[self.settings[0]], device)
        return words, numbers.sign_flips(self.head_dim, device)

    def decode(self, blocks: BlockTable, tiles: Tiles, target: DecodeTarget) -> None:
        is_wide = not (target.is_transposed or target.is_reordered)
        is_lattice = self.settings[0] in ("e8", "e8x1") and self.head_dim == 128
        if is_wide and is_lattice and launch.has_gluon(blocks.rows.device):
            from qvg_kernels.codecs.fitted.decode_hopper import decode_lattice

            decode_lattice(blocks, tiles, target, self.settings)
        else:
            super().decode(blocks, tiles, target)

    def tile(self, *, is_transposed: bool) -> launch.Tile:
        if self.settings[3] in (KEY.value, VALUE.value):
            return launch.DECODE_SHAPED
        return super().tile(is_transposed=is_transposed)

    def measure(self, blocks: BlockTable, *, is_key: bool) -> HeadScales:
        is_folded = self.settings[3] == FOLDED.value
        return self._measure(
            _unit_kernel, blocks, is_key, PLACEMENT=blocks.placement.kind, IS_FOLDED=is_folded
        )
