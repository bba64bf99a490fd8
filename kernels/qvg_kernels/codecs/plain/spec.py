"""Blocks kept as plain numbers."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from qvg_kernels.codecs.spec import PayloadBytes, Spec


@dataclass(frozen=True)
class NoneSpec(Spec):
    """Keys and values as the model made them, in its own dtype, any head size."""

    packs: ClassVar[bool] = False
    scheme: Literal["none"] = "none"

    def _payload(self, heads: int, tokens: int, head_dim: int, element_bytes: int) -> PayloadBytes:
        kind = "bf16" if element_bytes == 2 else "dense"
        return {kind: heads * tokens * head_dim * element_bytes}


@dataclass(frozen=True)
class Bf16Spec(Spec):
    """Keys and values rounded to bf16 whatever the model's dtype, any head size."""

    packs: ClassVar[bool] = False
    scheme: Literal["bf16"] = "bf16"

    def _payload(self, heads: int, tokens: int, head_dim: int, element_bytes: int) -> PayloadBytes:
        return {"bf16": heads * tokens * head_dim * 2}
