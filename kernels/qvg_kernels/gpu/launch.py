"""Block sizes of the kernels, by architecture and shape: read, never tuned at run time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PLACE_TOKENS = 32
"""Tokens of a program that copies and rotates."""

DECODE_TOKENS, DECODE_WARPS = 64, 4
"""Tokens and warps of a program that decodes."""

PROGRAMS_PER_MULTIPROCESSOR = 2
"""Programs of `attend_kernel` that run on a multiprocessor at the same time."""


@dataclass(frozen=True)
class AttendBlocks:
    """Shape of a program of `attend_kernel`: queries, keys a round, rounds of loads in flight, warps."""

    queries: int
    keys: int
    stages: int
    warps: int


def attend_blocks(is_fp8: bool, head_dim: int, device: torch.device) -> AttendBlocks:
    """Blocks for a device; on a CPU, where only the interpreter runs, small ones."""
    if device.type == "cpu":
        return AttendBlocks(16, 32, 1, 4)
    return AttendBlocks(64, 128, 3, 4) if is_fp8 else AttendBlocks(128, 128, 3, 8)
