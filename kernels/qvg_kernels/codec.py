"""The one interface of every cache codec: a block of keys or values in, a `PackedTensor` out, and back.

Invariant: `encode` is a function of the values, the spec and the seed alone. The same block gives the same
bytes, run to run and whatever other heads are in the call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from qvg_kernels.codecs.spec import PayloadBytes, Spec, check_packed_shape
from qvg_kernels.runtime.dispatch import uses_kernels

if TYPE_CHECKING:
    from qvg_kernels.codecs.reading import BlockReader


ALL = slice(None)
"""Every head, or every token."""


@dataclass(frozen=True)
class PackedTensor:
    """One block of keys or values, packed.

    Attributes:
        shape: `(B, H, S, D)` of the block that was encoded.
        dtype: Dtype of the block that was encoded, and of `Codec.decode`'s result.
        tensors: Name to stored tensor; nothing else is held for the block.
        kinds: Name to kind: "codes", "scales", "ids", "tables", "bf16" or "dense".
        matrix: `[B, H, D, D]` bf16 that shapes errors; blocks of a layer share it, and the layer counts it.
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    tensors: Mapping[str, Tensor]
    kinds: Mapping[str, str]
    matrix: Tensor | None = None

    def payload_bytes(self) -> PayloadBytes:
        """Sum of the stored tensors' sizes, by kind."""
        total: PayloadBytes = {}
        for name, tensor in self.tensors.items():
            kind = self.kinds[name]
            total[kind] = total.get(kind, 0) + tensor.numel() * tensor.element_size()
        return total


@dataclass(frozen=True, eq=False)
class Shaper:
    """What a layer's codec knows of how its errors are heard, for every head.

    Attributes:
        matrix: `[B, H, D, D]`: of a spec that is shaped, bf16 that blocks are decoded by; of one that weighs
            queries, the sum of the products of those of earlier chunks.
        inverse: Of a spec that is shaped, float16 that values are multiplied by before they are rounded.
    """

    matrix: Tensor
    inverse: Tensor | None = None

    def by_head(self) -> list[Shaper]:
        """Those of single heads, `[D, D]`."""
        matrices = self.matrix.flatten(0, 1).unbind(0)
        if self.inverse is None:
            return [Shaper(matrix) for matrix in matrices]
        return list(map(Shaper, matrices, self.inverse.flatten(0, 1).unbind(0)))


Shapers = tuple[Shaper | None, Shaper | None]
"""For a layer's keys and values; `None` for a codec that knows nothing."""


class Codec(ABC):
    """Packs blocks of keys or values; holds settings only, never data."""

    spec: Spec

    @abstractmethod
    def encode(
        self,
        block: Tensor,
        *,
        seed: int,
        checks: list[FiniteCheck] | None = None,
        shaper: Shaper | None = None,
    ) -> PackedTensor:
        """Pack `[B, H, S, D]` values; `seed` serves codecs that draw starting points.

        All heads of a block share one stream of draws, so that a head's bytes do not depend on which other
        heads are in the call: who holds heads `a` to `b` of a model packs the bytes that one device packs.

        Args:
            checks: Where a check that would wait for a GPU is added instead; the caller settles it with
                `first_error` before it uses the block. On a CPU, and without a list, nothing is put off.
            shaper: Of a spec that is shaped or weighs queries; without it errors are not shaped, and all
                channels weigh alike.

        Raises:
            ValueError: The block is empty or its head size is not one the codec takes.
            NonFiniteError: A value is NaN or infinite; names the first one.
        """

    @abstractmethod
    def decode(self, packed: PackedTensor, *, heads: slice = ALL, tokens: slice = ALL) -> Tensor:
        """Values of `heads` (along H) and `tokens` (along S), `[B, h, s, D]` in `packed.dtype`."""

    def residual_moment(self, block: Tensor, *, seed: int, checks: list[FiniteCheck] | None = None) -> Tensor:
        """Sum over tokens of the products of what a codebook leaves of `[B, H, S, D]` values: `[B, H, D, D]`.

        Of a spec that is shaped; `seed` and `checks` as `encode` has them.
        """
        raise NotImplementedError

    def shaping_matrix(self, residual: Tensor, query: Tensor | None) -> Tensor:
        """The matrix `[B, H, D, D]` bf16 that shapes errors, from sums of `residual_moment` and of queries.

        Args:
            query: `[B, H, D, D]`, moments of the queries as keys meet them; `None` where none were seen.
        """
        raise NotImplementedError

    def shaper_of(self, matrix: Tensor) -> Shaper:
        """What blocks are packed by if a matrix `[B, H, D, D]` shapes errors; takes longer than a chunk."""
        return Shaper(matrix)

    def reader(self, head_dim: int) -> BlockReader | None:
        """What reads blocks of heads of `head_dim` channels by kernels; `None` where only torch does."""
        return None


Settings = TypeVar("Settings", bound=Spec)


class HeadwiseCodec(Codec, Generic[Settings]):
    """A codec that packs one head at a time, by the same draws for every head.

    Products of the same shape sum in the same order, whatever the number of heads.

    Attributes:
        kinds: Kind of each tensor that may be stored, by name.
    """

    kinds: ClassVar[Mapping[str, str]]
    spec: Settings

    def __init__(self, spec: Settings) -> None:
        self.spec = spec

    def draw(self, tokens: int, head_dim: int, seed: int, device: torch.device) -> Any:
        """What all heads of a block of `tokens` share; nothing, if a codec does not draw."""

    @abstractmethod
    def encode_head(self, points: Tensor, draws: Any) -> dict[str, Tensor]:
        """Pack `[S, D]` float32 values of one head."""

    def encode_shaped_head(self, points: Tensor, draws: Any, shaper: Shaper) -> dict[str, Tensor]:
        """What `encode_head` does, by what is known of the head."""
        raise NotImplementedError

    def encode_by_kernels(
        self, block: Tensor, seed: int, shaper: Shaper | None
    ) -> tuple[dict[str, Tensor], FiniteCheck] | None:
        """Pack all heads by kernels, and whether their values are finite; `None` where only torch packs."""
        return None

    def encode(
        self,
        block: Tensor,
        *,
        seed: int,
        checks: list[FiniteCheck] | None = None,
        shaper: Shaper | None = None,
    ) -> PackedTensor:
        batch, heads, tokens, head_dim = block.shape
        check_packed_shape(self.spec.scheme, tokens, head_dim)
        if self.spec.is_shaped and shaper is None:
            one = torch.eye(head_dim, dtype=torch.bfloat16, device=block.device)
            one = one.expand(batch, heads, -1, -1).contiguous()
            shaper = Shaper(one, one.half())
        found = self.encode_by_kernels(block, seed, shaper) if uses_kernels(block.device) else None
        if found is not None:
            tensors, check = found
            check.settle(checks)
        else:
            FiniteCheck.of(block).settle(checks)
            draws = self.draw(tokens, head_dim, seed, block.device)
            points = [points.float() for points in block.flatten(0, 1)]
            if shaper is None:
                packed = [self.encode_head(each, draws) for each in points]
            else:
                packed = [
                    self.encode_shaped_head(each, draws, own)
                    for each, own in zip(points, shaper.by_head(), strict=True)
                ]
            tensors = {
                name: torch.stack([head[name] for head in packed]).unflatten(0, (batch, heads))
                for name in packed[0]
            }
        kinds = {name: self.kinds[name] for name in tensors}
        matrix = shaper.matrix if shaper is not None and self.spec.is_shaped else None
        return PackedTensor((batch, heads, tokens, head_dim), block.dtype, tensors, kinds, matrix)


class NonFiniteError(ValueError):
    """A block cannot be packed because it holds NaN or infinite values.

    Attributes:
        count: How many there are.
        head: Head of the first one.
        token: Token of the first one, counted from the start of the block.
    """

    def __init__(self, count: int, batch: int, head: int, token: int, channel: int, value: float) -> None:
        super().__init__(
            f"the block holds {count} NaN or infinite values, the first ({value}) in batch {batch}, "
            f"head {head}, token {token}, channel {channel}; nothing was packed"
        )
        self.count = count
        self.head = head
        self.token = token


@dataclass(frozen=True, eq=False)
class FiniteCheck:
    """What a device found of the values of one block, still on that device.

    Attributes:
        head_dim: Channels of the block.
        found: `[B, H, 3]` int32: how many values are NaN or infinite, the place of the first one (token times
            `head_dim` plus channel), and its bits as float32.
    """

    head_dim: int
    found: Tensor

    @classmethod
    def of(cls, block: Tensor) -> FiniteCheck:
        """Look at `[B, H, S, D]` values without waiting for them."""
        values = block.flatten(2)
        is_bad = ~torch.isfinite(values)
        place = is_bad.int().argmax(-1, keepdim=True)
        bits = values.gather(-1, place).float().view(torch.int32)
        found = torch.cat([is_bad.sum(-1, keepdim=True).int(), place.int(), bits], -1)
        return cls(block.shape[-1], found)

    def error(self) -> NonFiniteError | None:
        """What is wrong with the block, if anything; waits for the device."""
        found = self.found.cpu()
        bad = found[..., 0].nonzero()
        if len(bad) == 0:
            return None
        batch, head = (int(index) for index in bad[0])
        _, place, _ = found[batch, head].tolist()
        token, channel = divmod(place, self.head_dim)
        value = float(found[batch, head, 2].view(torch.float32))
        return NonFiniteError(int(found[..., 0].sum()), batch, head, token, channel, value)

    def settle(self, checks: list[FiniteCheck] | None) -> None:
        """Put it off to whoever holds `checks`; without them raise `NonFiniteError` now if there is one."""
        if checks is not None and self.found.device.type != "cpu":
            checks.append(self)
        elif error := self.error():
            raise error


def first_error(checks: Sequence[FiniteCheck]) -> tuple[int, NonFiniteError] | None:
    """Number and error of the first block with a NaN or infinite value; waits once, whatever their number."""
    if not checks:
        return None
    counts = torch.stack([check.found[..., 0].sum() for check in checks]).tolist()
    for number, (count, check) in enumerate(zip(counts, checks, strict=True)):
        if count and (error := check.error()):
            return number, error
    return None


def encode_pair(
    codecs: tuple[Codec, Codec],
    blocks: tuple[Tensor, Tensor],
    seeds: tuple[int, int],
    checks: list[FiniteCheck] | None = None,
    shapers: Shapers = (None, None),
) -> tuple[PackedTensor, PackedTensor]:
    """Pack a layer's keys and values, on a GPU at the same time: alone, a chunk's leave most of it idle.

    Args:
        checks: As `Codec.encode` has it; `shapers` likewise.
    """
    packings = [
        partial(codec.encode, block, seed=seed, checks=checks, shaper=shaper)
        for codec, block, seed, shaper in zip(codecs, blocks, seeds, shapers, strict=True)
    ]
    device = blocks[1].device
    if device.type != "cuda":
        return packings[0](), packings[1]()
    # Memory that is allocated on the second stream is used again only there, after the first stream has come
    # this far: its users are done with it by then.
    first, second = torch.cuda.current_stream(device), _second_stream(device)
    second.wait_stream(first)
    packed_key = packings[0]()
    with torch.cuda.stream(second):
        packed_value = packings[1]()
    first.wait_stream(second)
    return packed_key, packed_value


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
