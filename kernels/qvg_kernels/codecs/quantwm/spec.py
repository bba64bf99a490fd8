"""Settings of QuantWM."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from qvg_kernels.codecs.spec import PayloadBytes, Spec


@dataclass(frozen=True)
class QuantWmSpec(Spec):
    """QuantWM: k-means, four levels with a zero point, and what queries weigh.

    Attributes:
        block_size: Consecutive channels of a token that share a scale and a zero point.
        num_centroids: Of the block's codebook.
        iterations: Assign-and-update rounds of the k-means.
        candidates: Nearest centroids of a token, of which the one that leaves the least spread is taken; 1
            for values.
        rank: Directions of the queries along which a key's error is stored too; 0 for values.

    Source: QuantWM (arXiv 2609.26425).
    """

    ranges: ClassVar = {
        "num_centroids": (1, 256),
        "iterations": (1, 100),
        "candidates": (1, 256),
        "rank": (0, 64),
    }
    scheme: Literal["quantwm"] = "quantwm"
    block_size: Literal[32, 64, 128] = 64
    num_centroids: int = 256
    iterations: int = 2
    candidates: int = 1
    rank: int = 0

    @property
    def weighs_queries(self) -> bool:
        return self.candidates > 1 or self.rank > 0

    def _payload(self, heads: int, tokens: int, head_dim: int, element_bytes: int) -> PayloadBytes:
        groups = -(-head_dim // self.block_size)
        centroids = min(self.num_centroids, tokens)
        row_scale = 2 if self.rank else 0
        return {
            "codes": heads * tokens * (head_dim // 4 + self.rank),
            "scales": heads * (tokens * (groups + row_scale) + -(-tokens * groups // 4) + 2),
            "ids": heads * tokens,
            "tables": heads * 2 * head_dim * (centroids + self.rank),
        }
