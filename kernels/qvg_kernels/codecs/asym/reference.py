"""The scheme with evidence on real models: k-means, then levels from a block's lowest to its highest value.

Invariant: nothing is clipped beyond the rounding of the two e4m3 values, so outliers keep their size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qvg_kernels.codec import FiniteCheck, PackedTensor, require_finite, settle, stack_heads
from qvg_kernels.quant import bitpack, e4m3
from qvg_kernels.quant.kmeans import kmeans, random_starts
from qvg_kernels.runtime.dispatch import uses_kernels
from qvg_kernels.spec import AsymSpec, check_packed_shape

KINDS = {
    "codes": "codes",
    "steps": "scales",
    "lows": "scales",
    "ids": "ids",
    "centroids": "tables",
    "units": "tables",
}


class AsymCodec:
    """K-means in bf16, then `low + step * code` in blocks of channels, both numbers e4m3 times a unit."""

    def __init__(self, spec: AsymSpec) -> None:
        self.spec = spec

    def encode(self, span: Tensor, *, seed: int, checks: list[FiniteCheck] | None = None) -> PackedTensor:
        """Pack `[B, H, S, D]` values; the random starting tokens are the same for every head of the span."""
        batch, heads, tokens, head_dim = span.shape
        check_packed_shape(self.spec.scheme, tokens, head_dim)
        if uses_kernels(span.device):
            # Where Triton is not installed, nothing imports it.
            from qvg_kernels.codecs.encoding import encode_asym

            tensors, check = encode_asym(span, self.spec, seed)
            settle(check, checks)
            return PackedTensor((batch, heads, tokens, head_dim), span.dtype, tensors, KINDS)
        require_finite(span, checks)
        generator = torch.Generator().manual_seed(seed)
        starts = random_starts(tokens, min(self.spec.num_centroids, tokens), generator).to(span.device)
        # One head at a time: products of the same shape sum in the same order whatever the number of heads.
        parts = [self._encode_head(points.float(), starts) for points in span.flatten(0, 1)]
        return PackedTensor((batch, heads, tokens, head_dim), span.dtype, stack_heads(parts, batch), KINDS)

    def _encode_head(self, points: Tensor, starts: Tensor) -> dict[str, Tensor]:
        """Pack `[S, D]` float32 values of one head."""
        ids, centroids = kmeans(points, points[starts], self.spec.iterations)
        centroids = centroids.to(torch.bfloat16)
        residual = points - centroids.float()[ids]
        tokens, head_dim = residual.shape
        blocks = residual.reshape(tokens, -1, min(self.spec.block_size, head_dim))
        lowest, highest = blocks.aminmax(dim=-1)
        largest = 2**self.spec.bits - 1
        lows, low_unit = e4m3.round_to_unit(lowest)
        steps, step_unit = e4m3.round_to_unit((highest - lowest) / largest)
        low = (e4m3.from_bits(lows) * low_unit).unsqueeze(-1)
        step = (e4m3.from_bits(steps) * step_unit).unsqueeze(-1)
        codes = torch.where(step > 0, (blocks - low) / step, 0.0).round().clamp(0, largest)
        return {
            "codes": bitpack.pack(codes.to(torch.uint8).flatten(-2), self.spec.bits),
            "steps": steps,
            "lows": lows,
            "ids": ids.to(torch.uint8),
            "centroids": centroids,
            "units": torch.stack([step_unit, low_unit]),
        }

    def decode(
        self, packed: PackedTensor, *, heads: slice = slice(None), tokens: slice = slice(None)
    ) -> Tensor:
        """Values of `heads` and `tokens`, summed in float32: low, step, then the centroid."""
        stored = packed.tensors
        step_unit, low_unit = stored["units"][:, heads, None, None].unbind(-1)
        step = e4m3.from_bits(stored["steps"][:, heads, tokens]) * step_unit
        low = e4m3.from_bits(stored["lows"][:, heads, tokens]) * low_unit
        codes = bitpack.unpack(stored["codes"][:, heads, tokens], self.spec.bits).float()
        blocks = codes.unflatten(-1, (step.shape[-1], codes.shape[-1] // step.shape[-1]))
        values: Tensor = (low.unsqueeze(-1) + step.unsqueeze(-1) * blocks).flatten(-2)
        ids = stored["ids"][:, heads, tokens].long().unsqueeze(-1).expand(*values.shape)
        values = values + stored["centroids"][:, heads].float().gather(2, ids)
        return values.to(packed.dtype)
