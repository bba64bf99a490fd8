"""Peers that round to nearest between the lowest and highest value of a group: RTN, KIVI and QuaRot.

Invariant: all three use the same grid, all of its levels, and bf16 for a group's two numbers, so that what
differs between them is what their papers are about: along which axis groups run, and whether channels are
rotated first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qvg_kernels.codec import FiniteCheck, PackedTensor, require_finite
from qvg_kernels.quant import bitpack
from qvg_kernels.quant.hadamard import hadamard
from qvg_kernels.spec import KiviSpec, QuarotSpec, RtnSpec, check_packed_shape

KINDS = {"codes": "codes", "lows": "scales", "steps": "scales"}


def _quantize(groups: Tensor, bits: int, clip_ratio: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Codes `[..., G]` of groups `[..., G]`, and each group's lowest level and step, `[...]` bf16."""
    lowest, highest = groups.aminmax(dim=-1)
    largest = 2**bits - 1
    low = (lowest * clip_ratio).to(torch.bfloat16)
    step = ((highest - lowest) * clip_ratio / largest).to(torch.bfloat16)
    wide_low, wide_step = low.float().unsqueeze(-1), step.float().unsqueeze(-1)
    codes = torch.where(wide_step > 0, (groups - wide_low) / wide_step, 0.0).round().clamp(0, largest)
    return codes.to(torch.uint8), low, step


def _encode_channel_groups(
    span: Tensor, values: Tensor, bits: int, group_size: int, clip_ratio: float = 1.0
) -> PackedTensor:
    """Pack `[B, H, S, D]` float32 values in groups of a token's channels; shape and dtype are the span's."""
    batch, heads, tokens, head_dim = span.shape
    groups = values.reshape(batch, heads, tokens, -1, min(group_size, head_dim))
    codes, lows, steps = _quantize(groups, bits, clip_ratio)
    tensors = {"codes": bitpack.pack(codes.flatten(-2), bits), "lows": lows, "steps": steps}
    return PackedTensor((batch, heads, tokens, head_dim), span.dtype, tensors, KINDS)


def _decode_channel_groups(packed: PackedTensor, bits: int, heads: slice, tokens: slice) -> Tensor:
    """Float32 values of what `_encode_channel_groups` packed."""
    stored = {name: tensor[:, heads, tokens] for name, tensor in packed.tensors.items()}
    step = stored["steps"].float().unsqueeze(-1)
    codes = bitpack.unpack(stored["codes"], bits).float()
    codes = codes.unflatten(-1, (step.shape[-2], codes.shape[-1] // step.shape[-2]))
    values: Tensor = stored["lows"].float().unsqueeze(-1) + step * codes
    return values.flatten(-2)


class RtnCodec:
    """Groups of a token's channels as they are."""

    def __init__(self, spec: RtnSpec) -> None:
        self.spec = spec

    def encode(self, span: Tensor, *, seed: int, checks: list[FiniteCheck] | None = None) -> PackedTensor:
        check_packed_shape(self.spec.scheme, *span.shape[2:])
        require_finite(span, checks)
        return _encode_channel_groups(span, span.float(), self.spec.bits, self.spec.group_size)

    def decode(
        self, packed: PackedTensor, *, heads: slice = slice(None), tokens: slice = slice(None)
    ) -> Tensor:
        return _decode_channel_groups(packed, self.spec.bits, heads, tokens).to(packed.dtype)


class QuarotCodec:
    """Groups of a token's channels after a Hadamard rotation."""

    def __init__(self, spec: QuarotSpec) -> None:
        self.spec = spec

    def encode(self, span: Tensor, *, seed: int, checks: list[FiniteCheck] | None = None) -> PackedTensor:
        check_packed_shape(self.spec.scheme, *span.shape[2:])
        require_finite(span, checks)
        rotation = hadamard(span.shape[-1], span.device)
        # One head at a time: products of the same shape sum in the same order whatever the number of heads.
        rotated = torch.stack([points.float() @ rotation for points in span.flatten(0, 1)]).reshape(
            span.shape
        )
        return _encode_channel_groups(
            span, rotated, self.spec.bits, self.spec.group_size, self.spec.clip_ratio
        )

    def decode(
        self, packed: PackedTensor, *, heads: slice = slice(None), tokens: slice = slice(None)
    ) -> Tensor:
        rotated = _decode_channel_groups(packed, self.spec.bits, heads, tokens)
        return (rotated @ hadamard(packed.shape[-1], rotated.device)).to(packed.dtype)


class KiviCodec:
    """Groups along the tokens of a channel, or along the channels of a token, as the spec says."""

    def __init__(self, spec: KiviSpec) -> None:
        self.spec = spec

    def encode(self, span: Tensor, *, seed: int, checks: list[FiniteCheck] | None = None) -> PackedTensor:
        """Pack `[B, H, S, D]` values; along tokens the span's last group may be short."""
        batch, heads, tokens, head_dim = span.shape
        check_packed_shape(self.spec.scheme, tokens, head_dim)
        require_finite(span, checks)
        if self.spec.along == "channels":
            return _encode_channel_groups(span, span.float(), self.spec.bits, self.spec.group_size)
        # The last token, repeated, fills the last group without changing its lowest or highest value.
        missing = -tokens % self.spec.group_size
        filled = torch.cat([span, span[:, :, -1:].expand(-1, -1, missing, -1)], 2).float()
        groups = filled.reshape(batch, heads, -1, self.spec.group_size, head_dim).transpose(-1, -2)
        codes, lows, steps = _quantize(groups, self.spec.bits)
        by_token = codes.transpose(-1, -2).flatten(2, 3)[:, :, :tokens]
        tensors = {"codes": bitpack.pack(by_token, self.spec.bits), "lows": lows, "steps": steps}
        return PackedTensor((batch, heads, tokens, head_dim), span.dtype, tensors, KINDS)

    def decode(
        self, packed: PackedTensor, *, heads: slice = slice(None), tokens: slice = slice(None)
    ) -> Tensor:
        if self.spec.along == "channels":
            return _decode_channel_groups(packed, self.spec.bits, heads, tokens).to(packed.dtype)
        stored = {name: tensor[:, heads] for name, tensor in packed.tensors.items()}
        numbers = torch.arange(packed.shape[2], device=stored["codes"].device)[tokens]
        group = numbers // self.spec.group_size
        codes = bitpack.unpack(stored["codes"][:, :, tokens], self.spec.bits).float()
        values = stored["lows"].float()[:, :, group] + stored["steps"].float()[:, :, group] * codes
        return values.to(packed.dtype)
