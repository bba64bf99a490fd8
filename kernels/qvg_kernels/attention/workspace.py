"""The bytes that decoded keys and values pass through, allocated once and shared by all layers."""

from __future__ import annotations

import torch
from torch import Tensor

DEFAULT_WORKSPACE_BYTES = 256 * 2**20


class Workspace:
    """A buffer that attention decodes into.

    Args:
        limit_bytes: What attention plans with; see there for the least that it needs.
    """

    def __init__(self, limit_bytes: int = DEFAULT_WORKSPACE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._buffer: Tensor | None = None

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
            self._buffer = buffer = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        return buffer[:num_bytes]
