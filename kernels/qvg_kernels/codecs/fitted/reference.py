"""The recommended scheme: what a codebook leaves over, rotated and put on a fitted grid.

Invariant: errors average out. A token's scale does not shrink it, each centroid's tokens err by zero on
average, and tokens that look alike are rounded under different signs, so attention over many keys sees
little of the rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qvg_kernels.codec import ALL, FiniteCheck, HeadwiseCodec, PackedTensor, Shaper
from qvg_kernels.codecs.fitted.grids import grid
from qvg_kernels.codecs.fitted.shaping import inverse_of, shaping_matrix
from qvg_kernels.codecs.fitted.spec import FittedSpec
from qvg_kernels.quant import e4m3
from qvg_kernels.quant.hadamard import hadamard, phase_of_seed, sign_patterns, token_patterns
from qvg_kernels.quant.kmeans import cluster_sums, kmeans, spread_starts

if TYPE_CHECKING:
    from qvg_kernels.codecs.reading import BlockReader

KINDS = {
    "codes": "codes",
    "scales": "scales",
    "ids": "ids",
    "table": "tables",
    "weights": "tables",
    "steps": "tables",
    "offset": "tables",
    "units": "tables",
    "phase": "tables",
}

TABLE_TOP = 116
"""Where a channel's largest centroid lies among the 127 steps: 6 % of room for the step's own rounding in
e4m3, 3 % for the refit.
"""

TINY = 1e-30
"""Stands in for a zero that would divide; far below any value that a model makes."""


class FittedCodec(HeadwiseCodec[FittedSpec]):
    """Channel weights, k-means, token signs, Hadamard, fitted grid, unbiased scale, centroid refit.

    A token decodes to `offset + weight * (sign * (scale * levels) @ hadamard + step * table[id])`, with
    weight, step and scale each an e4m3 value times a unit of its head; the bytes are in docs/cache-format.md.
    If it is shaped, a matrix stands in the place of the weight.
    """

    kinds = KINDS

    def __init__(self, spec: FittedSpec) -> None:
        super().__init__(spec)
        self.grid = grid(spec.grid)

    def draw(self, tokens: int, head_dim: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The byte that shifts the sign patterns, all of the seed that is used, and the `[S, D]` signs."""
        phase = torch.full((1,), phase_of_seed(seed), dtype=torch.uint8, device=device)
        patterns = token_patterns(torch.arange(tokens, device=device), phase)
        return phase, sign_patterns(head_dim, device)[patterns]

    def encode_by_kernels(
        self, block: Tensor, seed: int, shaper: Shaper | None
    ) -> tuple[dict[str, Tensor], FiniteCheck]:
        from qvg_kernels.codecs.fitted.encode import encode

        return encode(block, self.spec, seed, shaper)

    def reader(self, head_dim: int) -> BlockReader:
        from qvg_kernels.codecs.fitted.reader import FittedReader

        return FittedReader.of(self.spec, head_dim)

    def encode_head(self, points: Tensor, draws: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return self.encode_shaped_head(points, draws, None)

    def encode_shaped_head(
        self, points: Tensor, draws: tuple[Tensor, Tensor], shaper: Shaper | None
    ) -> dict[str, Tensor]:
        phase, signs = draws
        offset = points.mean(0)
        weights, weight_unit = e4m3.round_to_unit(_channel_weights(points, offset))
        if shaper is None:
            weight = e4m3.from_bits(weights) * weight_unit
            weighted = (points - offset) / weight
        else:
            assert shaper.inverse is not None
            matrix, inverse = shaper.matrix.float(), shaper.inverse.float()
            weighted = (points - offset) @ inverse.T
        count = self.spec.centroids(points.shape[0])
        stored: dict[str, Tensor] = {"weights": weights}
        if count > 0:
            starts = spread_starts(points.shape[0], count, points.device)
            ids, centroids = kmeans(weighted, weighted[starts], self.spec.iterations)
            steps, step_unit = e4m3.round_to_unit(centroids.abs().amax(0) / TABLE_TOP)
            step = e4m3.from_bits(steps) * step_unit
            table = _round_table(centroids, step)
            codes, scales, scale_unit, noisy = self._round(weighted - (step * table)[ids], signs)
            # Refit: each centroid moves until its own tokens err by zero on average.
            sums, sizes = cluster_sums(weighted - noisy, ids, count)
            table = _round_table(torch.where(sizes > 0, sums / sizes.clamp(min=1), step * table), step)
            noisy = noisy + (step * table)[ids]
            stored |= {"ids": ids.to(torch.uint8), "table": table.to(torch.int8), "steps": steps}
        else:
            codes, scales, scale_unit, noisy = self._round(weighted, signs)
            step_unit = torch.zeros_like(scale_unit)
        # What is left of the mean error, above all the table's rounding, goes into the offset.
        missed = (weighted - noisy).mean(0)
        if shaper is None:
            offset = offset + weight * missed
        elif self.spec.shaping == "key":
            offset = offset + missed @ matrix.T
        else:
            offset = offset @ inverse.T + missed
        units = torch.stack([scale_unit, weight_unit, step_unit])
        return {"codes": codes, "scales": scales, **stored, "offset": offset, "units": units, "phase": phase}

    def _round(self, residual: Tensor, signs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Round `[S, D]` residuals: codes, e4m3 scales `[S]`, their unit, and what they decode to."""
        rotation = hadamard(residual.shape[1], residual.device)
        rotated = (residual * signs) @ rotation
        energy = rotated.square().sum(-1)
        deviation = (energy / rotated.shape[-1]).sqrt()
        levels = self.grid.quantize(rotated / deviation.clamp(min=TINY).unsqueeze(-1))
        along = (rotated * levels).sum(-1)
        unshrunk = energy / along.clamp(min=TINY)
        nearest = along / levels.square().sum(-1).clamp(min=TINY)
        exact = unshrunk**self.spec.unbiased * nearest ** (1 - self.spec.unbiased)
        scales, unit = e4m3.round_to_unit(exact)
        scale = e4m3.from_bits(scales) * unit
        noisy = ((scale.unsqueeze(-1) * levels) @ rotation) * signs
        return self.grid.write(levels), scales, unit, noisy

    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        """Values of `heads` and `tokens`, summed in float32; only what holds them is read."""
        _, _, total, head_dim = packed.shape
        start, stop, stride = tokens.indices(total)
        stop = max(start, stop)
        stored = {name: tensor[:, heads] for name, tensor in packed.tensors.items()}
        scale_unit, weight_unit, step_unit = stored["units"].unsqueeze(-2).unbind(-1)
        offset = stored["offset"].unsqueeze(-2)
        if packed.matrix is None:
            weight, inside = e4m3.from_bits(stored["weights"]) * weight_unit, offset
        else:
            weight = torch.ones_like(stored["offset"])
            inside = torch.zeros_like(offset) if self.spec.shaping == "key" else offset
        scale = e4m3.from_bits(stored["scales"][..., start:stop]) * scale_unit
        levels = self.grid.read(stored["codes"], start, stop, head_dim)
        residual = (levels @ hadamard(head_dim, levels.device)).mul_(scale.unsqueeze(-1))
        patterns = token_patterns(torch.arange(start, stop, device=scale.device), stored["phase"])
        signed_weight = _rows(weight.unsqueeze(-2) * sign_patterns(head_dim, scale.device), patterns)
        if "ids" in stored:
            step = e4m3.from_bits(stored["steps"]) * step_unit
            table = inside + (weight * step).unsqueeze(-2) * stored["table"].float()
            values = _rows(table, stored["ids"][..., start:stop].long()).addcmul_(residual, signed_weight)
        else:
            values = torch.addcmul(inside, residual, signed_weight)
        values = values[:, :, ::stride]
        if packed.matrix is not None:
            values = values @ packed.matrix[:, heads].float().mT + (offset - inside)
        return values.to(packed.dtype)

    def residual_moment(self, block: Tensor, *, seed: int, checks: list[FiniteCheck] | None = None) -> Tensor:
        plain = FittedCodec(replace(self.spec, shaping="none"))
        packed = plain.encode(block, seed=seed, checks=checks)
        # Scales of zero leave what the codebook says.
        tensors = {**packed.tensors, "scales": torch.zeros_like(packed.tensors["scales"])}
        known = replace(packed, tensors=tensors, dtype=torch.float32)
        moment = torch.empty(*block.shape[:2], block.shape[3], block.shape[3], device=block.device)
        for head in range(block.shape[1]):
            some = slice(head, head + 1)
            left = block[:, some].float() - plain.decode(known, heads=some)
            moment[:, some] = left.mT @ left
        return moment

    def shaping_matrix(self, residual: Tensor, query: Tensor | None) -> Tensor:
        return shaping_matrix(residual, query if self.spec.shaping == "key" else None)

    def shaper_of(self, matrix: Tensor) -> Shaper:
        return Shaper(matrix, inverse_of(matrix))


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows `[B, H, S]` of each head's table `[B, H, K, D]`, `[B, H, S, D]`."""
    batch, heads, size, width = table.shape
    first = size * torch.arange(batch * heads, device=index.device).reshape(batch, heads, 1)
    rows = table.reshape(-1, width).index_select(0, (index + first).flatten())
    return rows.reshape(*index.shape, width)


def _channel_weights(points: Tensor, offset: Tensor) -> Tensor:
    """`[D]` weights: the square root of each channel's deviation from its mean.

    Exponent 1/2 lies between the least absolute (0) and relative (1) error of channels. On synthetic keys,
    whose large channels meet small query channels, it loses 1 dB less than either end. Channels that hardly
    vary get at least 2**-14 of the largest weight, so that every weight is a normal e4m3 value.
    """
    weight = (points - offset).square().mean(0).sqrt().sqrt()
    largest = weight.amax()
    return torch.where(largest > 0, weight.clamp(min=largest * 2.0**-14), 1.0)


def _round_table(centroids: Tensor, step: Tensor) -> Tensor:
    """`[K, D]` float32 integers: centroids in steps, at most 127 either way."""
    return (centroids / step.clamp(min=TINY)).round().clamp(-127, 127)
