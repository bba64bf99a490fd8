"""Settings of the scheme with evidence on real models."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from qvg_kernels.codecs.spec import PayloadBytes, Spec


@dataclass(frozen=True)
class AsymSpec(Spec):
    """K-means, then a grid from the lowest to the highest residual of each group of channels.

    Attributes:
        bits: Of a residual code.
        block_size: Consecutive channels of a token that share an e4m3 step and an e4m3 lowest value.
        num_centroids: Of the codebook.
        iterations: Assign-and-update rounds of the k-means.

    Source: the setting that a third party measured on real models (github.com/JamesSand/Quant-VideoGen at
        e8883df, "qvg-nom").
    """

    ranges: ClassVar = {"num_centroids": (1, 256), "iterations": (1, 100)}
    scheme: Literal["asym"] = "asym"
    bits: Literal[2, 4] = 2
    block_size: Literal[16, 32, 64, 128] = 128
    num_centroids: int = 256
    iterations: int = 2

    def _payload(self, heads: int, tokens: int, head_dim: int, element_bytes: int) -> PayloadBytes:
        # A head has two units beside its centroids.
        return {
            "codes": heads * tokens * head_dim * self.bits // 8,
            "scales": 2 * heads * tokens * -(-head_dim // self.block_size),
            "ids": heads * tokens,
            "tables": heads * (min(self.num_centroids, tokens) * head_dim * 2 + 2 * 4),
        }
