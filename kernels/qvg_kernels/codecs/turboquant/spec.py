"""Settings of TurboQuant."""

from dataclasses import dataclass
from typing import Literal

from qvg_kernels.codecs.spec import PayloadBytes, Spec


@dataclass(frozen=True)
class TurboQuantSpec(Spec):
    """TurboQuant: each token's norm, and its direction rotated at random onto Lloyd-Max levels.

    Attributes:
        bits: Of a code.

    Source: TurboQuant (arXiv 2504.19874), the variant for least error (Algorithm 1), norms in bf16.
    """

    scheme: Literal["turboquant"] = "turboquant"
    bits: Literal[2, 4] = 2

    def _payload(self, heads: int, tokens: int, head_dim: int, element_bytes: int) -> PayloadBytes:
        return {"codes": heads * tokens * head_dim * self.bits // 8, "scales": heads * tokens * 2}
