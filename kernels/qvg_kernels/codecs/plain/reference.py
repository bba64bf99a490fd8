"""Spans kept as plain numbers: the yardstick that every packed codec is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from qvg_kernels.codec import FiniteCheck, PackedTensor, require_finite
from qvg_kernels.spec import Bf16Spec, NoneSpec


class NoneCodec:
    """Keeps a span as the model made it; decoding gives the same bits back."""

    def __init__(self, spec: NoneSpec) -> None:
        self.spec = spec

    def encode(self, span: Tensor, *, seed: int, checks: list[FiniteCheck] | None = None) -> PackedTensor:
        require_finite(span, checks)
        kind = "bf16" if span.element_size() == 2 else "dense"
        return _keep(span, span.dtype, kind)

    def decode(
        self, packed: PackedTensor, *, heads: slice = slice(None), tokens: slice = slice(None)
    ) -> Tensor:
        return packed.tensors["values"][:, heads, tokens]


class Bf16Codec:
    """Rounds a span to bf16, to nearest even."""

    def __init__(self, spec: Bf16Spec) -> None:
        self.spec = spec

    def encode(self, span: Tensor, *, seed: int, checks: list[FiniteCheck] | None = None) -> PackedTensor:
        require_finite(span, checks)
        return _keep(span.to(torch.bfloat16), span.dtype, "bf16")

    def decode(
        self, packed: PackedTensor, *, heads: slice = slice(None), tokens: slice = slice(None)
    ) -> Tensor:
        return packed.tensors["values"][:, heads, tokens].to(packed.dtype)


def _keep(values: Tensor, dtype: torch.dtype, kind: str) -> PackedTensor:
    # A copy: the span may be a view into a buffer that the model writes again.
    batch, heads, tokens, head_dim = values.shape
    copy = values.clone(memory_format=torch.contiguous_format)
    return PackedTensor((batch, heads, tokens, head_dim), dtype, {"values": copy}, {"values": kind})
