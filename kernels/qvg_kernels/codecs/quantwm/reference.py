"""QuantWM, a peer that knows the queries, in torch.

Invariant: nothing is improved here. The correction of keys is always stored in its dense layout, since a
block's size must be known before its values are.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from qvg_kernels.codec import ALL, HeadwiseCodec, PackedTensor, Shaper
from qvg_kernels.codecs.quantwm.spec import QuantWmSpec
from qvg_kernels.quant import bitpack
from qvg_kernels.quant.kmeans import kmeans, random_starts

KINDS = {
    "codes": "codes",
    "corrections": "codes",
    "zeros": "scales",
    "scales": "scales",
    "unit": "scales",
    "correction_scales": "scales",
    "ids": "ids",
    "centroids": "tables",
    "directions": "tables",
}

TINY = 1e-30
"""Stands in for a zero that would divide."""


class QuantWmCodec(HeadwiseCodec[QuantWmSpec]):
    """K-means as in QVG, groups of four levels, and for keys what queries weigh.

    Source: QuantWM (arXiv 2609.26425): "QSAC" chooses the centroid, "PSAC" stores a key's error along the
    directions that queries point to most. The base is QVG's (arXiv 2602.02958). Without a shaper, in the
    first chunk, all channels weigh alike and no error is stored.
    """

    kinds = KINDS

    def draw(self, tokens: int, head_dim: int, seed: int, device: torch.device) -> Tensor:
        """Random starting tokens."""
        return random_starts(tokens, min(self.spec.num_centroids, tokens), 1, seed)[0].to(device)

    def encode_head(self, points: Tensor, draws: Tensor) -> dict[str, Tensor]:
        return self.encode_shaped_head(points, draws, None)

    def encode_shaped_head(self, points: Tensor, draws: Tensor, shaper: Shaper | None) -> dict[str, Tensor]:
        moment = None if shaper is None else shaper.matrix
        ids, centroids = kmeans(points, points[draws], self.spec.iterations)
        table = centroids.to(torch.bfloat16)
        weight = torch.ones_like(points[0]) if moment is None else moment.diagonal().float()
        if self.spec.candidates > 1:
            ids = self._choose(points, table.float(), weight / weight.mean().clamp(min=TINY))
        tokens, head_dim = points.shape
        groups = (points - table.float()[ids]).reshape(tokens, -1, min(self.spec.block_size, head_dim))
        low, high = groups.amin(-1), groups.amax(-1)
        wanted = (high - low) / 3
        unit = (wanted.amax() / 127).clamp(max=torch.finfo(torch.float16).max).to(torch.float16).reshape(1)
        scales = (wanted / unit.float().clamp(min=TINY)).round().clamp(1, 127)
        step = (scales * unit.float()).clamp(min=TINY)
        zeros = (-low / step).round().clamp(0, 3)
        codes = ((groups / step.unsqueeze(-1)).round() + zeros.unsqueeze(-1)).clamp(0, 3)
        flat = zeros.to(torch.uint8).flatten()
        stored = {
            "codes": bitpack.pack(codes.to(torch.uint8).flatten(1), 2),
            "zeros": bitpack.pack(pad(flat, (0, -len(flat) % 4)), 2),
            "scales": scales.to(torch.int8),
            "unit": unit,
            "ids": ids.to(torch.uint8),
            "centroids": table,
        }
        if self.spec.rank:
            rounded = (codes - zeros.unsqueeze(-1)) * (scales * unit.float()).unsqueeze(-1)
            stored |= self._correct((groups - rounded).flatten(1), moment)
        return stored

    def _choose(self, points: Tensor, table: Tensor, weight: Tensor) -> Tensor:
        """Of each token's nearest centroids the one whose residual has the least weighted ranges, `[S]`."""
        count, head_dim = table.shape
        distances = (table.square() @ weight) - 2 * (points * weight) @ table.T
        nearest = distances.topk(min(self.spec.candidates, count), largest=False).indices
        # [S, candidates, groups, channels]
        size = min(self.spec.block_size, head_dim)
        residual = (points.unsqueeze(1) - table[nearest]).unflatten(-1, (-1, size))
        spread = (residual.amax(-1) - residual.amin(-1)).square() @ weight.reshape(-1, size).sum(-1)
        return nearest.gather(1, spread.argmin(1, keepdim=True)).squeeze(1)

    def _correct(self, error: Tensor, moment: Tensor | None) -> dict[str, Tensor]:
        """What is stored of `[S, D]` errors; zeros for a token whose logits that would not bring nearer."""
        directions = error.new_zeros(error.shape[1], self.spec.rank)
        if moment is not None:
            # On the CPU, so that every device starts from the same directions.
            _, vectors = torch.linalg.eigh(moment.double().cpu())
            directions = vectors[:, -self.spec.rank :].flip(1).to(error)
        directions = directions.to(torch.bfloat16)
        along = error @ directions.float()
        scales = (along.abs().amax(1) / 127).clamp(max=torch.finfo(torch.float16).max).to(torch.float16)
        parts = (along / scales.float().clamp(min=TINY).unsqueeze(1)).round().clamp(-127, 127)
        if moment is not None:
            left = error - (parts * scales.float().unsqueeze(1)) @ directions.float().T
            weighed = [((each @ moment.float()) * each).sum(1) for each in (left, error)]
            is_better = weighed[0] < weighed[1]
            parts, scales = parts * is_better.unsqueeze(1), scales * is_better
        return {
            "corrections": parts.to(torch.int8),
            "correction_scales": scales,
            "directions": directions,
        }

    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        """Values of `heads` and `tokens`, summed in float32: grid, centroid, correction."""
        stored = {name: tensor[:, heads] for name, tensor in packed.tensors.items()}
        scales = stored["scales"]
        groups = scales.shape[-1]
        zeros = bitpack.unpack(stored["zeros"], 2)[..., : scales.shape[2] * groups].unflatten(
            -1, (-1, groups)
        )
        codes = bitpack.unpack(stored["codes"][:, :, tokens], 2).float().unflatten(-1, (groups, -1))
        step = scales[:, :, tokens].float() * stored["unit"].float().unsqueeze(-1)
        residual = (codes - zeros[:, :, tokens].unsqueeze(-1)) * step.unsqueeze(-1)
        index = stored["ids"][:, :, tokens].long().unsqueeze(-1).expand(-1, -1, -1, packed.shape[-1])
        values: Tensor = residual.flatten(-2) + stored["centroids"].float().gather(2, index)
        if self.spec.rank:
            parts = stored["corrections"][:, :, tokens].float()
            parts = parts * stored["correction_scales"][:, :, tokens].float().unsqueeze(-1)
            values = values + parts @ stored["directions"].float().mT
        return values.to(packed.dtype)
