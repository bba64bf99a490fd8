"""Settings of the recommended scheme."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from qvg_kernels.codecs.spec import PayloadBytes, Spec

GridName = Literal["e8x1", "trit", "int2", "e8", "int3", "int4"]
"""Levels of a fitted residual: eight values together at one bit each, three, four, eight values together at
two bits each, eight, sixteen."""

GRID_BITS: dict[GridName, int] = {"e8x1": 1, "int2": 2, "e8": 2, "int3": 3, "int4": 4}
"""Bits of one code of the grids that pack each token by itself; "trit" packs five tokens into a byte."""


@dataclass(frozen=True)
class FittedSpec(Spec):
    """K-means, a rotation, and a grid whose scale is fitted to each token.

    Attributes:
        grid: Levels of the residual.
        num_centroids: Of the block's codebook; 0 for none, `None` for a number that suits the block's length.
        iterations: Assign-and-update rounds of the k-means.
        shaping: Whether errors are shaped by a matrix a head that blocks share, and for what: "key" by what
            queries ask for, "value" by how values spread.
        unbiased: Where the scale lies between least error (0) and no shrinking of what is stored (1). Keys
            do best at about 0.8: noise on a key makes its token heard more, shrinking makes it heard less.

    Source: the unbiased scale is that of DRIVE and EDEN (arXiv 2105.08339, 2108.08842).
    """

    ranges: ClassVar = {"num_centroids": (0, 256), "iterations": (1, 100), "unbiased": (0, 1)}
    scheme: Literal["fitted"] = "fitted"
    grid: GridName = "e8"
    num_centroids: int | None = None
    iterations: int = 4
    unbiased: float = 1.0
    shaping: Literal["none", "key", "value"] = "none"

    @property
    def is_shaped(self) -> bool:
        return self.shaping != "none"

    def centroids(self, tokens: int) -> int:
        """Centroids that a block of `tokens` gets.

        What a larger codebook costs in bits is weighed against what it saves in error: from 4,680 tokens a
        multiple of 8 that keeps a two-bit grid of 128 channels within 2.25 bits; below, one for each 42
        tokens, at most 64, which a block of 336 tokens pays with 2.46 bits.
        """
        if self.num_centroids is not None:
            return min(self.num_centroids, tokens)
        if tokens >= 4680:
            return min(256, 8 * ((tokens - 392) // 512))
        return min(tokens, 64, max(8, 8 * (tokens // 336)))

    def code_shape(self, tokens: int, head_dim: int) -> tuple[int, int]:
        """Rows and bytes of a head's codes."""
        if self.grid == "trit":
            return -(-tokens // 5), head_dim
        return tokens, head_dim * GRID_BITS[self.grid] // 8

    def _payload(self, heads: int, tokens: int, head_dim: int, element_bytes: int) -> PayloadBytes:
        centroids = self.centroids(tokens)
        rows, row_bytes = self.code_shape(tokens, head_dim)
        # A channel has a weight, a float32 offset and, with a codebook, its step; a head three units and a
        # phase.
        channels = head_dim * (1 + 4 + (1 if centroids else 0))
        shared = centroids * head_dim + channels + 3 * 4 + 1
        ids = {"ids": heads * tokens} if centroids else {}
        return {"codes": heads * rows * row_bytes, "scales": heads * tokens, **ids, "tables": heads * shared}
