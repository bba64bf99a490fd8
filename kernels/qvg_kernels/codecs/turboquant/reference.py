"""TurboQuant, a peer without any table: a random rotation makes every direction look alike to one fixed grid.

Invariant: the rotation and the levels depend on the head size and the bits alone, never on data.
"""

import math
from functools import cache

import torch
from torch import Tensor

from qvg_kernels.codec import ALL, HeadwiseCodec, PackedTensor
from qvg_kernels.codecs.turboquant.spec import TurboQuantSpec
from qvg_kernels.quant import bitpack

KINDS = {"codes": "codes", "norms": "scales"}

LEVELS = {
    2: (0.4528, 1.5104),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326),
}
"""Positive levels, by bits, of the best quantiser of a unit Gaussian, which a rotated coordinate nearly is.

Source: Max, "Quantizing for minimum distortion" (1960), the tables for 4 and 16 levels.
"""


@cache
def _rotation(head_dim: int, device: torch.device) -> Tensor:
    """`[D, D]` float32 random orthogonal matrix: the Q of a Gaussian matrix, with a fixed seed."""
    generator = torch.Generator().manual_seed(head_dim)
    gaussian = torch.randn(head_dim, head_dim, generator=generator, dtype=torch.float64)
    orthogonal, upper = torch.linalg.qr(gaussian)
    rotation: Tensor = orthogonal * upper.diagonal().sign()
    return rotation.float().to(device)


@cache
def _levels(bits: int, device: torch.device) -> Tensor:
    levels = [-level for level in reversed(LEVELS[bits])] + list(LEVELS[bits])
    return torch.tensor(levels, device=device)


class TurboQuantCodec(HeadwiseCodec[TurboQuantSpec]):
    """A token's norm in bf16 and its rotated direction on fixed levels."""

    kinds = KINDS

    def encode_head(self, points: Tensor, draws: None) -> dict[str, Tensor]:
        head_dim, bits = points.shape[1], self.spec.bits
        levels = _levels(bits, points.device)
        norms = points.norm(dim=-1, keepdim=True)
        directions = points / norms.clamp(min=1e-30) * math.sqrt(head_dim)
        rotated = directions @ _rotation(head_dim, points.device).T
        codes = torch.bucketize(rotated, (levels[1:] + levels[:-1]) / 2)
        packed = bitpack.pack(codes.to(torch.uint8), bits)
        return {"codes": packed, "norms": norms.squeeze(-1).to(torch.bfloat16)}

    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        stored = {name: tensor[:, heads, tokens] for name, tensor in packed.tensors.items()}
        head_dim = packed.shape[-1]
        levels = _levels(self.spec.bits, stored["codes"].device)
        rotated = levels[bitpack.unpack(stored["codes"], self.spec.bits).long()]
        directions = rotated @ _rotation(head_dim, rotated.device) / math.sqrt(head_dim)
        return (stored["norms"].float().unsqueeze(-1) * directions).to(packed.dtype)
