"""The scheme of the QVG paper, the mark that the other codecs are measured against.

Invariant: nothing is improved here. The grid uses three of its four codes and the e4m3 scale has no
normaliser, as published; what differs is only that the random start comes from the given seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qvg_kernels.codec import ALL, FiniteCheck, HeadwiseCodec, PackedTensor, Shaper
from qvg_kernels.codecs.qvg.spec import QvgSpec
from qvg_kernels.quant import bitpack, e4m3
from qvg_kernels.quant.kmeans import kmeans, random_starts

if TYPE_CHECKING:
    from qvg_kernels.codecs.reading import BlockReader

KINDS = {"codes": "codes", "scales": "scales", "ids": "ids", "centroids": "tables"}


class QvgCodec(HeadwiseCodec[QvgSpec]):
    """K-means in stages, then a symmetric grid in blocks of channels.

    Source: QVG paper (arXiv 2602.02958), sections on semantic-aware smoothing and progressive residual
    quantization; start and rounding as in its code (svg-project/Quant-VideoGen at 0601468, `kmeans_euclid.py`
    and `quant_pack.py`): the block's maximum over the largest level, rounded to e4m3 before it divides.
    """

    kinds = KINDS

    def draw(self, tokens: int, head_dim: int, seed: int, device: torch.device) -> Tensor:
        """Random starting tokens of each stage."""
        count = min(self.spec.num_centroids, tokens)
        return random_starts(tokens, count, self.spec.stages, seed).to(device)

    def encode_by_kernels(
        self, block: Tensor, seed: int, shaper: Shaper | None
    ) -> tuple[dict[str, Tensor], FiniteCheck]:
        from qvg_kernels.codecs.qvg.encode import encode

        return encode(block, self.spec, seed)

    def reader(self, head_dim: int) -> BlockReader:
        from qvg_kernels.codecs.qvg.decode import reader

        return reader(self.spec, head_dim)

    def encode_head(self, points: Tensor, draws: Tensor) -> dict[str, Tensor]:
        residual = points
        all_ids, all_centroids = [], []
        for stage_starts in draws:
            ids, centroids = kmeans(residual, residual[stage_starts], self.spec.iterations)
            centroids = centroids.to(torch.bfloat16)
            residual = residual - centroids.float()[ids]
            all_ids.append(ids.to(torch.uint8))
            all_centroids.append(centroids)
        largest = 2 ** (self.spec.bits - 1) - 1
        tokens, head_dim = residual.shape
        groups = residual.reshape(tokens, -1, min(self.spec.block_size, head_dim))
        scales = e4m3.to_bits(groups.abs().amax(-1) / largest)
        steps = e4m3.from_bits(scales).unsqueeze(-1)
        # A group whose scale underflows to zero keeps only its centroids.
        levels = torch.where(steps > 0, groups / steps, 0.0).round().clamp(-largest, largest)
        codes = (levels + largest).to(torch.uint8).flatten(-2)
        return {
            "codes": bitpack.pack(codes, self.spec.bits),
            "scales": scales,
            "ids": torch.stack(all_ids),
            "centroids": torch.stack(all_centroids),
        }

    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        """Values of `heads` and `tokens`, summed in float32: grid first, then the stages in order."""
        stored = packed.tensors
        largest = 2 ** (self.spec.bits - 1) - 1
        codes = bitpack.unpack(stored["codes"][:, heads, tokens], self.spec.bits)
        steps = e4m3.from_bits(stored["scales"][:, heads, tokens])
        block_size = codes.shape[-1] // steps.shape[-1]
        groups = (codes.float() - largest).unflatten(-1, (steps.shape[-1], block_size))
        values: Tensor = (groups * steps.unsqueeze(-1)).flatten(-2)
        ids = stored["ids"][:, heads, :, tokens].long()
        centroids = stored["centroids"][:, heads].float()
        for stage in range(self.spec.stages):
            index = ids[:, :, stage].unsqueeze(-1).expand(-1, -1, -1, values.shape[-1])
            values = values + centroids[:, :, stage].gather(2, index)
        return values.to(packed.dtype)
