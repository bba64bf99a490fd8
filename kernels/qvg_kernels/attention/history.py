"""What a chunk attends to: packed blocks, the keys and values that the model has just made, and the bytes
that they are read into.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from qvg_kernels.codec import Codec, PackedTensor
from qvg_kernels.codecs.spec import Spec
from qvg_kernels.rope.placement import Placement

if TYPE_CHECKING:
    from qvg_kernels.attention.blocks import BlockList

DEFAULT_WORKSPACE_BYTES = 256 * 2**20
MOST_KEPT = 256
"""Views that a workspace keeps: those of a call are some ten, and change with the length of the history."""

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class StoredBlock:
    """Consecutive tokens of a block, as codecs store it.

    Attributes:
        first_token: The first that is read, counted in the block.
        key_placement: Of all tokens of the block.
        value_placement: `None` leaves values as they are.
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
        """Keys and values of `heads` and `tokens`, placed: two `[B, h, s, D]`."""
        inside = slice(self.first_token + tokens.start, self.first_token + tokens.stop)
        key = self.key_codec.decode(self.key, heads=heads, tokens=inside)
        value = self.value_codec.decode(self.value, heads=heads, tokens=inside)
        return _placed(key, value, self.key_placement, self.value_placement, inside)


@dataclass(frozen=True, eq=False)
class OwnKeys:
    """The chunk's own keys and values as the model made them, `[B, H, S, D]`, any strides but the last."""

    key: Tensor
    value: Tensor
    key_placement: Placement
    value_placement: Placement | None

    @property
    def num_tokens(self) -> int:
        return self.key.shape[2]

    def read(self, heads: slice, tokens: slice) -> tuple[Tensor, Tensor]:
        """As `StoredBlock.read`."""
        key, value = self.key[:, heads, tokens], self.value[:, heads, tokens]
        return _placed(key, value, self.key_placement, self.value_placement, tokens)


@dataclass(eq=False)
class History:
    """The stored blocks that a layer's chunk attends to, the same for every step of the chunk.

    Attributes:
        lists: The blocks as kernels read them, kept from the first step on.
    """

    blocks: Sequence[StoredBlock]
    lists: tuple[BlockList, ...] | None = None

    @cached_property
    def kinds(self) -> tuple[frozenset[tuple[Spec, Spec, type]], int]:
        """What of the blocks decides which kernels run."""
        kinds = ((b.key_codec.spec, b.value_codec.spec, type(b.value_placement)) for b in self.blocks)
        return frozenset(kinds), len({id(b.value.matrix) for b in self.blocks})


def _placed(
    key: Tensor, value: Tensor, key_placement: Placement, value_placement: Placement | None, tokens: slice
) -> tuple[Tensor, Tensor]:
    if value_placement is not None:
        value = value_placement.apply(value, tokens)
    return key_placement.apply(key, tokens), value


class Workspace:
    """A buffer that attention decodes into, allocated once and shared by all layers.

    Args:
        limit_bytes: What attention plans with; see there for the least that it needs.
    """

    def __init__(self, limit_bytes: int = DEFAULT_WORKSPACE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._buffer: Tensor | None = None
        self._kept: dict[Hashable, Any] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes allocated so far."""
        return 0 if self._buffer is None else self._buffer.numel()

    def take(self, num_bytes: int, device: torch.device) -> Tensor:
        """`[num_bytes]` uint8, whose content lasts until the next call."""
        buffer = self._buffer
        if buffer is None or buffer.device != device or buffer.numel() < num_bytes:
            # Freed before the larger one is allocated.
            self._buffer = buffer = None
            self._kept.clear()
            self._buffer = buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        return buffer[:num_bytes]

    def keep(self, make: Callable[..., Made], *sizes: Hashable) -> Made:
        """`make(buffer, *sizes)`, views of the buffer, made once as long as that stays where it is."""
        key = make, sizes
        if key not in self._kept:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = make(self._buffer, *sizes)
        made: Made = self._kept[key]
        return made
