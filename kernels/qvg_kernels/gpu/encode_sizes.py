"""How the encoding kernels cut their work: read, never tuned at run time.

Invariant: what a sum adds in which order follows from the number of tokens and the head size, never from the
number of heads or the card's load.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

SMALL_SHARED = (86, 89, 120)
"""Compute capabilities whose programs have 99 KiB of shared memory."""

MEAN_ROWS = 16
"""Centroids of a program that moves them or starts them; every number of rows is a multiple."""

SPLIT_TOKENS = 1024
"""Tokens of a program that measures channels or rounds scales."""


@dataclass(frozen=True)
class Sizes:
    """Of one kernel: tokens of a block, warps of a program, stages of its loop."""

    tokens: int
    warps: int
    stages: int = 1


def cluster_block(count: int, head_dim: int) -> int:
    """Centroids that one product takes."""
    largest = 64 if head_dim <= 128 else 32
    return min(largest, max(MEAN_ROWS, int(triton.next_power_of_2(count))))


def cluster_rows(count: int, head_dim: int) -> int:
    """Rows that hold `count` centroids: whole blocks."""
    block = cluster_block(count, head_dim)
    return -(-count // block) * block


def tokens_per_run(tokens: int) -> int:
    """Tokens whose sum one program makes; a multiple of every block."""
    return 512 if tokens <= 16384 else 2048


def moments(head_dim: int) -> Sizes:
    """Of the kernel that measures channels."""
    return Sizes(64 if head_dim <= 128 else 32, 4)


def assign(head_dim: int, device: torch.device) -> Sizes:
    """Of the kernel that finds the nearest centroids."""
    return Sizes(128, 4, 2) if head_dim <= 128 else Sizes(64, 4, 2)


def sums(head_dim: int, device: torch.device) -> Sizes:
    """Of the kernel that adds up clusters."""
    return Sizes(64, 4, 3) if head_dim <= 128 else Sizes(32, 4, 3)


def codes(head_dim: int, device: torch.device) -> Sizes:
    """Of the kernels that round residuals."""
    return Sizes({64: 64, 128: 64, 256: 32}[head_dim], 4)
