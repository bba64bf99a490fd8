"""The matrices that shape one layer's rounding errors: shipped with the model, or learnt from its first two
packed blocks.

Of those that are learnt, version 0 is made of the first block and the queries up to its packing, version 1,
which all later blocks have, of both. A cache that has become empty begins anew. Invariant: what is learnt
depends on what passes through the model and in which order, not on the video's length or on which other heads
are here.

A codec that weighs queries has no versions: it gets what the queries of all earlier chunks asked for.
"""

from collections.abc import Collection, Sequence

import torch
from safetensors import safe_open
from torch import Tensor

from qvg_cli.config.schema import CacheConfig
from qvg_cli.errors import UsageError
from qvg_cli.planning.cache_forecast import CacheShape, check_matrices
from qvg_cli.planning.cache_plan import NUM_VERSIONS
from qvg_kernels.codec import Codec, FiniteCheck, Shaper, Shapers
from qvg_kernels.rope.placement import Placement

Matrices = tuple[Tensor | None, Tensor | None]
"""Of the keys and of the values, `[B, H, D, D]` bf16 each; `None` for a codec that shapes nothing."""


class Shaping:
    """What a layer has learnt.

    Args:
        shipped: `[H, D, D]` matrices that take the place of learnt ones.

    Attributes:
        versions: The learnt matrices that are held, by version.
        earlier: For a codec that weighs queries, `[B, H, D, D]`, the sum of the products of those of earlier
            chunks.
    """

    def __init__(self, key: Codec, value: Codec, shipped: Matrices | None = None) -> None:
        self.versions: dict[int, Matrices] = {}
        self.earlier: Tensor | None = None
        self._codecs = key, value
        self._is_shaped = key.spec.is_shaped or value.spec.is_shaped
        self._shipped = shipped
        self._newest: Shapers = (None, None)
        self._query: Tensor | None = None
        self._placements: Sequence[Placement] = ()
        self._residuals: list[Tensor | None] = [None, None]

    @property
    def is_learning(self) -> bool:
        """Whether the queries of model calls are still of use."""
        if self._codecs[0].spec.weighs_queries:
            return True
        return self._is_shaped and self._shipped is None and NUM_VERSIONS - 1 not in self.versions

    def begin(self) -> None:
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

    def add(
        self, blocks: tuple[Tensor, Tensor], seeds: tuple[int, int], checks: list[FiniteCheck] | None = None
    ) -> None:
        """Take the keys and values `[B, H, S, D]` of a block into account."""
        for side, (codec, block, seed) in enumerate(zip(self._codecs, blocks, seeds, strict=True)):
            if codec.spec.is_shaped:
                found = codec.residual_moment(block, seed=seed, checks=checks)
                before = self._residuals[side]
                self._residuals[side] = found if before is None else before + found

    def learnt(self) -> Matrices:
        query = None
        if self._query is not None:
            raw = self._query.double()
            query = torch.stack([placement.at_keys(raw) for placement in self._placements]).sum(0)
        key, value = (
            None if residual is None else codec.shaping_matrix(residual, query)
            for codec, residual in zip(self._codecs, self._residuals, strict=True)
        )
        return key, value

    def shapers(
        self, version: int, blocks: tuple[Tensor, Tensor], seeds: tuple[int, int], checks: list[FiniteCheck]
    ) -> Shapers:
        """What a block is packed by that has the newest version.

        Args:
            blocks: Its keys and values, `[B, H, S, D]`.
        """
        if self._is_shaped and self._shipped is None and version not in self.versions:
            self.add(blocks, seeds, checks)
            self.take(version, self.learnt())
        self.shipped_on(blocks[0].device, len(blocks[0]))
        key, value = self._newest
        return key if self.earlier is None else Shaper(self.earlier), value

    def shipped_on(self, device: torch.device, batch: int) -> Matrices | None:
        """The matrices that came with the model, if they did."""
        if self._shipped is None:
            return None
        if self._newest == (None, None):
            key, value = (
                None if each is None else each.to(device).expand(batch, *each.shape).contiguous()
                for each in self._shipped
            )
            self._newest = self._prepare((key, value))
        key, value = (None if each is None else each.matrix for each in self._newest)
        return key, value

    def take(self, version: int, matrices: Matrices) -> None:
        self.versions[version], self._newest = matrices, self._prepare(matrices)

    def _prepare(self, matrices: Matrices) -> Shapers:
        key, value = (
            None if matrix is None else codec.shaper_of(matrix)
            for codec, matrix in zip(self._codecs, matrices, strict=True)
        )
        return key, value

    def num_bytes(self, version: int) -> int:
        """Size of a version; shipped matrices count with the model."""
        held = self.versions.get(version, ())
        return sum(each.numel() * each.element_size() for each in held if each is not None)

    def keep(self, versions: Collection[int]) -> None:
        """Forget the other versions, and the sums if nothing more is learnt from them."""
        self.versions = {version: self.versions[version] for version in versions}
        if not self.is_learning:
            self._query, self._residuals = None, [None, None]


def read_shipped(config: CacheConfig, shape: CacheShape) -> list[Matrices] | None:
    """The shipped matrices `[H, D, D]` of every layer, of the heads here; `UsageError` if they do not fit."""
    path = check_matrices(config, shape)
    if path is None:
        return None
    found: list[Matrices] = []
    with safe_open(path, framework="pt") as file:

        def read(name: str) -> Tensor:
            matrix: Tensor = file.get_tensor(name)
            if not (matrix.isfinite().all() and matrix.equal(matrix.mT)):
                raise UsageError(f"{path} is damaged: {name} is not finite, or not symmetric")
            return matrix.chunk(shape.num_parts)[shape.part]

        for number, layer in enumerate(config.of_layers(shape.num_layers)):
            key, value = (
                read(f"layer{number}.{side}") if spec.is_shaped else None
                for side, spec in (("key", layer.k), ("value", layer.v))
            )
            found.append((key, value))
    return found


def _moment(states: Tensor) -> Tensor:
    """`[D, D]` float32, the sum of the products of `[S, D]` states."""
    wide = states.float()
    return wide.T @ wide
