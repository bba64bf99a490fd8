"""What a chunk attends to: runs of packed keys and values, and those that the model has just made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from qvg_kernels.codec import Codec, PackedTensor
from qvg_kernels.rope.placement import Placement


class Segment(Protocol):
    """A run of keys and values that is read as a whole or in parts."""

    @property
    def num_tokens(self) -> int:
        """Keys in the segment."""
        ...

    def read(self, heads: slice, tokens: slice) -> tuple[Tensor, Tensor]:
        """Keys and values of a part, placed: two `[B, h, s, D]`."""
        ...


@dataclass(frozen=True, eq=False)
class StoredSegment:
    """A run of tokens of a span, as codecs store it.

    Attributes:
        first_token: Of the run, counted in the span.
        key_placement: Of all tokens of the span.
        value_placement: None leaves values as they are.
    """

    key_codec: Codec
    value_codec: Codec
    key: PackedTensor
    value: PackedTensor
    key_placement: Placement
    value_placement: Placement | None
    first_token: int
    num_tokens: int

    def read(self, heads: slice, tokens: slice) -> tuple[Tensor, Tensor]:
        """See `Segment.read`."""
        part = slice(self.first_token + tokens.start, self.first_token + tokens.stop)
        key = self.key_codec.decode(self.key, heads=heads, tokens=part)
        value = self.value_codec.decode(self.value, heads=heads, tokens=part)
        return _placed(key, value, self.key_placement, self.value_placement, part)


@dataclass(frozen=True, eq=False)
class GivenSegment:
    """Keys and values as the model made them, `[B, H, S, D]`, any strides but the last."""

    key: Tensor
    value: Tensor
    key_placement: Placement
    value_placement: Placement | None

    @property
    def num_tokens(self) -> int:
        """See `Segment.num_tokens`."""
        return self.key.shape[2]

    def read(self, heads: slice, tokens: slice) -> tuple[Tensor, Tensor]:
        """See `Segment.read`."""
        key, value = self.key[:, heads, tokens], self.value[:, heads, tokens]
        return _placed(key, value, self.key_placement, self.value_placement, tokens)


@dataclass(eq=False)
class History:
    """The stored segments that a layer's chunk attends to, the same for every step of the chunk.

    Attributes:
        prepared: What kernels need beside the segments, kept from the first step on.
    """

    segments: Sequence[StoredSegment]
    prepared: dict[str, object] = field(default_factory=dict)


def _placed(
    key: Tensor, value: Tensor, key_placement: Placement, value_placement: Placement | None, tokens: slice
) -> tuple[Tensor, Tensor]:
    if value_placement is not None:
        value = value_placement.apply(value, tokens)
    return key_placement.apply(key, tokens), value
