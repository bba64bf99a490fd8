"""Absmax in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from qvg_kernels.codec import ALL, HeadwiseCodec, PackedTensor

from .spec import AbsmaxSpec


class AbsmaxCodec(HeadwiseCodec[AbsmaxSpec]):
    """A token's values over its largest magnitude."""

    kinds = {"codes": "codes", "scales": "scales"}  # noqa: RUF012

    def encode_head(self, points: Tensor, draws: None) -> dict[str, Tensor]:
        scales = points.abs().amax(-1) * self.spec.clip_ratio / 127
        codes = (points / scales.clamp(min=1e-30).unsqueeze(-1)).round().clamp(-127, 127)
        return {"codes": codes.to(torch.int8), "scales": scales}

    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        codes, scales = (packed.tensors[name][:, heads, tokens] for name in ("codes", "scales"))
        return (codes.float() * scales.unsqueeze(-1)).to(packed.dtype)
