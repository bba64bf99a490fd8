"""Settings of the scheme of the QVG paper."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from qvg_kernels.codecs.spec import PayloadBytes, Spec


@dataclass(frozen=True)
class QvgSpec(Spec):
    """The QVG paper: k-means in stages, then a symmetric grid on the last residual.

    Attributes:
        bits: Of a residual code; 2 gives the levels -1 0 1, 4 gives -7 to 7.
        block_size: Consecutive channels of a token that share one e4m3 scale.
        num_centroids: Of one stage.
        stages: K-means one after the other, each on the residual of the one before.
        iterations: Assign-and-update rounds of one k-means.

    Source: QVG paper (arXiv 2602.02958); QVG is one stage and block 64, QVG-Pro four stages and block 16.
    """

    ranges: ClassVar = {"num_centroids": (1, 256), "stages": (1, 4), "iterations": (1, 100)}
    scheme: Literal["qvg"] = "qvg"
    bits: Literal[2, 4] = 2
    block_size: Literal[16, 32, 64, 128] = 64
    num_centroids: int = 256
    stages: int = 1
    iterations: int = 2

    def _payload(self, heads: int, tokens: int, head_dim: int, element_bytes: int) -> PayloadBytes:
        return {
            "codes": heads * tokens * head_dim * self.bits // 8,
            "scales": heads * tokens * -(-head_dim // self.block_size),
            "ids": self.stages * heads * tokens,
            "tables": self.stages * heads * min(self.num_centroids, tokens) * head_dim * 2,
        }
