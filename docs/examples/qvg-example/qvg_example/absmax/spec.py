"""Settings of absmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from qvg_kernels.codecs.spec import PayloadBytes, Spec


@dataclass(frozen=True)
class AbsmaxSpec(Spec):
    """Round to nearest between plus and minus the largest magnitude of a token, times `clip_ratio`."""

    ranges: ClassVar = {"clip_ratio": (0.5, 1.0)}
    scheme: Literal["absmax"] = "absmax"
    clip_ratio: float = 1.0

    def _payload(self, heads: int, tokens: int, head_dim: int, element_bytes: int) -> PayloadBytes:
        return {"codes": heads * tokens * head_dim, "scales": heads * tokens * 4}
