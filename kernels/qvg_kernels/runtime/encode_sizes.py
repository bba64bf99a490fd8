"""How the encoding kernels cut their work: read, never tuned at run time.

Invariant: what a sum adds in which order follows from the number of tokens and the head size, never from the
number of heads or the card's load. Times in the comments are for one tensor `[1, 12, S, 128]` of bf16 on one
NVIDIA H200 (torch 2.11, Triton 3.6), from a profile of whole encodings with the default preset.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

SMALL_SHARED = ((8, 6), (8, 7), (8, 9), (12, 0), (12, 1))
"""Compute capabilities whose programs have 99 KiB of shared memory."""

MEAN_ROWS = 16
"""Centroids of a program that moves them or starts them; every number of rows is a multiple."""

ASSIGNED_CLUSTERS = 64
"""At most so many centroids are found by the kernel that adds up their tokens: with more, registers spill."""

CHUNK = 32
"""Rotated channels that are rounded at a time. With 64, and 200 registers, 322 us at S = 37,440, not 288."""

SPLIT_TOKENS = 512
"""Tokens of a program that measures channels or rounds scales."""


@dataclass(frozen=True)
class Sizes:
    """Of one kernel: tokens of a block, warps of a program, stages of its loop, registers of a thread."""

    tokens: int
    warps: int
    stages: int = 1
    registers: int | None = None


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; that of a card with little shared memory where there is no GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else SMALL_SHARED[0]


def cluster_block(count: int, head_dim: int, device: torch.device) -> int:
    """Centroids whose tokens one program adds up: all of them, up to a limit."""
    # Of 256 at S = 37,440: 84 us with 128 a program, 91 with all of them, 102 with 64.
    largest = 64 if head_dim <= 128 else 32
    if head_dim <= 128 and capability(device) not in SMALL_SHARED:
        largest = 128
    return min(largest, max(MEAN_ROWS, int(triton.next_power_of_2(count))))


def cluster_rows(count: int, head_dim: int, device: torch.device) -> int:
    """Rows that hold `count` centroids: whole blocks."""
    block = cluster_block(count, head_dim, device)
    return -(-count // block) * block


def tokens_per_run(tokens: int) -> int:
    """Tokens whose sum one program makes; a multiple of every block.

    Eleven runs: with 12 heads one program for each of an H200's 132 multiprocessors, with 24 two.
    """
    return -(-tokens // (11 * 64)) * 64


def moments(head_dim: int) -> Sizes:
    """Of the kernel that measures channels."""
    # 15 us at S = 4,680, 47 us at 37,440; blocks half as large are slower.
    return Sizes(4096 // head_dim, 4)


def assign_block(block: int) -> int:
    """Centroids that meet a block of tokens at a time, where there are too many for one program."""
    # At S = 37,440 and 256 centroids 112 us with 64, 131 us with 128, 150 us with 32.
    return min(block, 64)


def assign(head_dim: int) -> Sizes:
    """Of the kernel that finds the nearest centroids."""
    # At S = 37,440 107 us.
    return Sizes(128, 8, 3) if head_dim <= 128 else Sizes(64, 4, 2)


def sums(head_dim: int, *, assigns: bool) -> Sizes:
    """Of the kernel that adds up clusters, and finds them if they are few."""
    if head_dim > 128:
        return Sizes(32, 4, 2)
    # 64 clusters at S = 4,680, assigned on the way: 11 us; with 2 stages, or 128 tokens on 8 warps, more.
    # 256 clusters at S = 37,440: 76 us, on 4 warps 81.
    return Sizes(64, 4 if assigns else 8, 3)


def codes(head_dim: int) -> Sizes:
    """Of the kernel that rounds residuals."""
    # 42 us at S = 4,680, 288 us at 37,440; 321 us with all 255 registers, 299 us with 128.
    return Sizes({64: 64, 128: 64, 256: 32}[head_dim], 4, registers=168)


def blocks(head_dim: int) -> int:
    """Tokens of a program that rounds blocks of channels."""
    return 4096 // head_dim
