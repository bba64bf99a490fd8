"""Peers that round to nearest between the lowest and highest value of a group: RTN, KIVI and QuaRot.

Invariant: all three use the same grid, all of its levels, and bf16 for a group's two numbers, so that what
differs between them is what their papers are about: along which axis groups lie, and whether channels are
rotated first.
"""

from typing import TypeVar

import torch
from torch import Tensor

from qvg_kernels.codec import ALL, HeadwiseCodec, PackedTensor
from qvg_kernels.codecs.min_max.spec import KiviSpec, QuarotSpec, RtnSpec
from qvg_kernels.quant import bitpack
from qvg_kernels.quant.hadamard import hadamard

AnySpec = TypeVar("AnySpec", bound=RtnSpec | KiviSpec | QuarotSpec)


class _MinMaxCodec(HeadwiseCodec[AnySpec]):
    """Groups of a token's channels as they are."""

    kinds = {"codes": "codes", "lows": "scales", "steps": "scales"}  # noqa: RUF012
    clip_ratio = 1.0

    def encode_head(self, points: Tensor, draws: None) -> dict[str, Tensor]:
        tokens, head_dim = points.shape
        groups = points.reshape(tokens, -1, min(self.spec.group_size, head_dim))
        codes, lows, steps = self._quantize(groups)
        return {"codes": bitpack.pack(codes.flatten(-2), self.spec.bits), "lows": lows, "steps": steps}

    def _quantize(self, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes `[..., G]` of groups `[..., G]`, and each group's lowest level and step, `[...]` bf16."""
        lowest, highest = groups.aminmax(dim=-1)
        largest = 2**self.spec.bits - 1
        low = (lowest * self.clip_ratio).to(torch.bfloat16)
        step = ((highest - lowest) * self.clip_ratio / largest).to(torch.bfloat16)
        wide_low, wide_step = low.float().unsqueeze(-1), step.float().unsqueeze(-1)
        codes = torch.where(wide_step > 0, (groups - wide_low) / wide_step, 0.0).round().clamp(0, largest)
        return codes.to(torch.uint8), low, step

    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        return self._decode_groups(packed, heads, tokens).to(packed.dtype)

    def _decode_groups(self, packed: PackedTensor, heads: slice, tokens: slice) -> Tensor:
        stored = {name: tensor[:, heads, tokens] for name, tensor in packed.tensors.items()}
        step = stored["steps"].float().unsqueeze(-1)
        codes = bitpack.unpack(stored["codes"], self.spec.bits).float()
        codes = codes.unflatten(-1, (step.shape[-2], codes.shape[-1] // step.shape[-2]))
        values: Tensor = stored["lows"].float().unsqueeze(-1) + step * codes
        return values.flatten(-2)


class RtnCodec(_MinMaxCodec[RtnSpec]):
    """Groups of a token's channels as they are."""


class QuarotCodec(_MinMaxCodec[QuarotSpec]):
    """Groups of a token's channels after a Hadamard rotation."""

    def __init__(self, spec: QuarotSpec) -> None:
        super().__init__(spec)
        self.clip_ratio = spec.clip_ratio

    def encode_head(self, points: Tensor, draws: None) -> dict[str, Tensor]:
        return super().encode_head(points @ hadamard(points.shape[-1], points.device), draws)

    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        rotated = self._decode_groups(packed, heads, tokens)
        return (rotated @ hadamard(packed.shape[-1], rotated.device)).to(packed.dtype)


class KiviCodec(_MinMaxCodec[KiviSpec]):
    """Groups along the tokens of a channel, or along the channels of a token, as the spec says."""

    def encode_head(self, points: Tensor, draws: None) -> dict[str, Tensor]:
        """Pack `[S, D]` values; along tokens the block's last group may be short."""
        if self.spec.along == "channels":
            return super().encode_head(points, draws)
        tokens, head_dim = points.shape
        # The last token, repeated, fills the last group without changing its lowest or highest value.
        filled = torch.cat([points, points[-1:].expand(-tokens % self.spec.group_size, -1)])
        groups = filled.reshape(-1, self.spec.group_size, head_dim).transpose(-1, -2)
        codes, lows, steps = self._quantize(groups)
        by_token = codes.transpose(-1, -2).flatten(0, 1)[:tokens]
        return {"codes": bitpack.pack(by_token, self.spec.bits), "lows": lows, "steps": steps}

    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        if self.spec.along == "channels":
            return super().decode(packed, heads=heads, tokens=tokens)
        stored = {name: tensor[:, heads] for name, tensor in packed.tensors.items()}
        group = torch.arange(packed.shape[2], device=stored["codes"].device)[tokens] // self.spec.group_size
        codes = bitpack.unpack(stored["codes"][:, :, tokens], self.spec.bits).float()
        values = stored["lows"].float()[:, :, group] + stored["steps"].float()[:, :, group] * codes
        return values.to(packed.dtype)
