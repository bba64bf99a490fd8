"""The scheme with evidence on real models: k-means, then levels from a block's lowest to its highest value.

Invariant: nothing is clipped beyond the rounding of the two e4m3 values, so outliers keep their size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qvg_kernels.codec import ALL, FiniteCheck, HeadwiseCodec, PackedTensor, Shaper
from qvg_kernels.codecs.asym.spec import AsymSpec
from qvg_kernels.quant import bitpack, e4m3
from qvg_kernels.quant.kmeans import kmeans, random_starts

if TYPE_CHECKING:
    from qvg_kernels.codecs.reading import BlockReader

KINDS = {
    "codes": "codes",
    "steps": "scales",
    "lows": "scales",
    "ids": "ids",
    "centroids": "tables",
    "units": "tables",
}


class AsymCodec(HeadwiseCodec[AsymSpec]):
    """K-means in bf16, then `low + step * code` in blocks of channels, both numbers e4m3 times a unit."""

    kinds = KINDS

    def draw(self, tokens: int, head_dim: int, seed: int, device: torch.device) -> Tensor:
        """Random starting tokens of the k-means."""
        return random_starts(tokens, min(self.spec.num_centroids, tokens), 1, seed)[0].to(device)

    def encode_by_kernels(
        self, block: Tensor, seed: int, shaper: Shaper | None
    ) -> tuple[dict[str, Tensor], FiniteCheck]:
        from qvg_kernels.codecs.asym.encode import encode

        return encode(block, self.spec, seed)

    def reader(self, head_dim: int) -> BlockReader:
        from qvg_kernels.codecs.asym.decode import reader

        return reader(self.spec, head_dim)

    def encode_head(self, points: Tensor, draws: Tensor) -> dict[str, Tensor]:
        ids, centroids = kmeans(points, points[draws], self.spec.iterations)
        centroids = centroids.to(torch.bfloat16)
        residual = points - centroids.float()[ids]
        tokens, head_dim = residual.shape
        groups = residual.reshape(tokens, -1, min(self.spec.block_size, head_dim))
        lowest, highest = groups.aminmax(dim=-1)
        largest = 2**self.spec.bits - 1
        lows, low_unit = e4m3.round_to_unit(lowest)
        steps, step_unit = e4m3.round_to_unit((highest - lowest) / largest)
        low = (e4m3.from_bits(lows) * low_unit).unsqueeze(-1)
        step = (e4m3.from_bits(steps) * step_unit).unsqueeze(-1)
        codes = torch.where(step > 0, (groups - low) / step, 0.0).round().clamp(0, largest)
        return {
            "codes": bitpack.pack(codes.to(torch.uint8).flatten(-2), self.spec.bits),
            "steps": steps,
            "lows": lows,
            "ids": ids.to(torch.uint8),
            "centroids": centroids,
            "units": torch.stack([step_unit, low_unit]),
        }

    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        """Values of `heads` and `tokens`, summed in float32: low, step, then the centroid."""
        stored = packed.tensors
        step_unit, low_unit = stored["units"][:, heads, None, None].unbind(-1)
        step = e4m3.from_bits(stored["steps"][:, heads, tokens]) * step_unit
        low = e4m3.from_bits(stored["lows"][:, heads, tokens]) * low_unit
        codes = bitpack.unpack(stored["codes"][:, heads, tokens], self.spec.bits).float()
        groups = codes.unflatten(-1, (step.shape[-1], codes.shape[-1] // step.shape[-1]))
        values: Tensor = (low.unsqueeze(-1) + step.unsqueeze(-1) * groups).flatten(-2)
        ids = stored["ids"][:, heads, tokens].long().unsqueeze(-1).expand(*values.shape)
        values = values + stored["centroids"][:, heads].float().gather(2, ids)
        return values.to(packed.dtype)
