"""The matrices that shape one layer's rounding errors, learnt from its first two packed blocks.

Version 0 is made of the first block and the queries up to its packing, version 1, which all later blocks
have, of both. A cache that has become empty begins anew. Invariant: what is learnt depends on what passes
through the model and in which order, not on the video's length or on which other heads are here.

A codec that weighs queries has no versions: it gets what the queries of all earlier chunks asked for.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from qvg_cli.planning.cache_plan import NUM_VERSIONS
from qvg_kernels.codec import Codec, FiniteCheck
from qvg_kernels.rope.placement import Placement

Matrices = tuple[Tensor | None, Tensor | None]
"""Of the keys and of the values, `[B, H, D, D]` bf16 each; `None` for a codec that shapes nothing."""


class Shaping:
    """What a layer has learnt.

    Attributes:
        versions: The matrices that are held, by version.
        earlier: For a codec that weighs queries, `[B, H, D, D]`, the sum of the products of those of earlier
            chunks.
        inverses: Of the newest, by which blocks are encoded.
    """

    def __init__(self, key: Codec, value: Codec) -> None:
        self.versions: dict[int, Matrices] = {}
        self.inverses: Matrices = (None, None)
        self._codecs = key, value
        self._is_shaped = key.spec.is_shaped or value.spec.is_shaped
        self.earlier: Tensor | None = None
        self._query: Tensor | None = None
        self._placements: Sequence[Placement] = ()
        self._residuals: list[Tensor | None] = [None, None]

    @property
    def is_learning(self) -> bool:
        """Whether the queries of model calls are still of use."""
        if self._codecs[0].spec.weighs_queries:
            return True
        return self._is_shaped and NUM_VERSIONS - 1 not in self.versions

    def begin(self) -> None:
        """Begin a chunk: what was observed is of earlier ones."""
        if self._codecs[0].spec.weighs_queries:
            self.earlier = self._query

    def observe(self, query: Tensor, placements: Sequence[Placement]) -> None:
        """Take the queries of a model call into account, `[B, H, S, D]`, not placed."""
        spec = self._codecs[0].spec
        if not (self.is_learning and (spec.is_shaped or spec.weighs_queries)):
            return
        self._placements = placements
        # Head by head, so that what is summed does not depend on how many are here.
        moments = torch.stack([_moment(states) for states in query.flatten(0, 1)])
        moments = moments.unflatten(0, query.shape[:2])
        self._query = moments if self._query is None else self._query + moments

    def matrices(
        self, version: int, blocks: tuple[Tensor, Tensor], seeds: tuple[int, int], checks: list[FiniteCheck]
    ) -> Matrices:
        """Those of keys and values `[B, H, S, D]` about to be packed, made of what was observed if new."""
        if not self._is_shaped:
            return None, None
        if version not in self.versions:
            self.take(version, self._learn(blocks, seeds, checks))
        return self.versions[version]

    def take(self, version: int, matrices: Matrices) -> None:
        """Hold the newest version."""
        key, value = (
            None if matrix is None else codec.inverse_of(matrix)
            for codec, matrix in zip(self._codecs, matrices, strict=True)
        )
        self.versions[version], self.inverses = matrices, (key, value)

    def _learn(
        self, blocks: tuple[Tensor, Tensor], seeds: tuple[int, int], checks: list[FiniteCheck]
    ) -> Matrices:
        query = None
        if self._query is not None:
            raw = self._query.double()
            query = torch.stack([placement.at_keys(raw) for placement in self._placements]).sum(0)
        made: list[Tensor | None] = [None, None]
        for side, (codec, block, seed) in enumerate(zip(self._codecs, blocks, seeds, strict=True)):
            if codec.spec.is_shaped:
                found = codec.residual_moment(block, seed=seed, checks=checks)
                before = self._residuals[side]
                self._residuals[side] = total = found if before is None else before + found
                made[side] = codec.shaping_matrix(total, query)
        return made[0], made[1]

    def keep(self, versions: Collection[int]) -> None:
        """Forget the other versions, and the sums if nothing more is learnt from them."""
        self.versions = {version: self.versions[version] for version in versions}
        if not self.is_learning:
            self._query, self._residuals = None, [None, None]


def _moment(states: Tensor) -> Tensor:
    """`[D, D]` float32, the sum of the products of `[S, D]` states."""
    wide = states.float()
    return wide.T @ wide
