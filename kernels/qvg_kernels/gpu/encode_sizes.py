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

SPLIT_TOKENS = 512
"""Tokens of a program that measures channels or rounds scales."""


@dataclass(frozen=True)
class Sizes:
    """Of one kernel: tokens of a block, warps of a program, stages of its loop."""

    tokens: int
    warps: int
    stages: int = 1


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; that of a card with little shared memory where there is no GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else SMALL_SHARED[0]


def cluster_block(count: int, head_dim: int, device: torch.device) -> int:
    """Centroids whose tokens one program adds up: all of them, up to a limit."""
    # All 256 in one program, which then assigns tokens too, make an encoding of keys and values take 5.28 ms
    # at S = 37,440 and 16.2 ms on 16 warps: registers spill, and one program fills a multiprocessor. With 128
    # and a kernel of its own that assigns, it takes 4.02 ms.
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
    # 22 us at S = 4,680, 89 us at 37,440; blocks half as large are slower.
    return Sizes(4096 // head_dim, 4)


def assign_block(block: int) -> int:
    """Centroids that meet a block of tokens at a time, where there are too many for one program."""
    # At S = 37,440 and 256 centroids 128 us with 64, 152 us with 128 and 8 warps.
    return min(block, 64)


def assign(head_dim: int) -> Sizes:
    """Of the kernel that finds the nearest centroids."""
    # 8 warps and 3 stages take 8 us less than 4 and 2.
    return Sizes(128, 8, 3) if head_dim <= 128 else Sizes(64, 4, 2)


def sums(block: int, head_dim: int) -> Sizes:
    """Of the kernel that adds up `block` clusters, and finds them if they are all."""
    if head_dim > 128:
        return Sizes(32, 4, 2)
    # 64 clusters: a round takes 15 us at S = 4,680. 128 clusters: keys and values at S = 37,440 take 4.02 ms,
    # with 64 tokens 4.48 ms.
    return Sizes(64, 4, 2) if block <= 64 else Sizes(128, 8, 2)


def codes(head_dim: int) -> Sizes:
    """Of the kernel that rounds residuals."""
    # 75 us at S = 4,680, 500 us at 37,440; 17 and 130 us more with 128 tokens on 8 warps, 67 and 590 us more
    # with 64 on 8.
    return Sizes({64: 64, 128: 64, 256: 32}[head_dim], 4)


def blocks(head_dim: int) -> int:
    """Tokens of a program that rounds blocks of channels."""
    return 4096 // head_dim
