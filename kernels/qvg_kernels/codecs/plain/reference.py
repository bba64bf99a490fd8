"""Blocks kept as plain numbers: the yardstick that every packed codec is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qvg_kernels.codec import ALL, Codec, FiniteCheck, PackedTensor, Shaper
from qvg_kernels.codecs.plain.spec import Bf16Spec, NoneSpec

if TYPE_CHECKING:
    from qvg_kernels.codecs.reading import BlockReader


class PlainCodec(Codec):
    """Keeps a block as the model made it, whose bits decoding gives back, or rounds it to bf16."""

    def __init__(self, spec: NoneSpec | Bf16Spec) -> None:
        self.spec = spec

    def encode(
        self,
        block: Tensor,
        *,
        seed: int,
        checks: list[FiniteCheck] | None = None,
        shaper: Shaper | None = None,
    ) -> PackedTensor:
        FiniteCheck.of(block).settle(checks)
        dtype = torch.bfloat16 if isinstance(self.spec, Bf16Spec) else block.dtype
        # A copy: the block may be a view into a buffer that the model writes again.
        values = block.to(dtype, copy=True, memory_format=torch.contiguous_format)
        batch, heads, tokens, head_dim = block.shape
        kinds = {"values": "bf16" if values.element_size() == 2 else "dense"}
        return PackedTensor((batch, heads, tokens, head_dim), block.dtype, {"values": values}, kinds)

    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        return packed.tensors["values"][:, heads, tokens].to(packed.dtype)

    def reader(self, head_dim: int) -> BlockReader:
        from qvg_kernels.codecs.plain.decode import reader

        return reader(head_dim)
