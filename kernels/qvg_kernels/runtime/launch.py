"""How large a tile each kernel works on, by architecture and shape: read, never tuned at run time.

Invariant: what a sum adds in which order follows from the number of tokens and the head size, never from the
number of heads or the card's load. Times in the comments are of one NVIDIA H200 (torch 2.11, Triton 3.6);
those of encoding are for one tensor `[1, 12, S, 128]` of bf16, from a profile of whole encodings with the
default preset.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from qvg_kernels.runtime.dispatch import is_hopper


@dataclass(frozen=True)
class Tile:
    """What a program takes at once.

    Attributes:
        rows: Tokens or queries.
        stages: Rounds of its loop that are loaded at once.
        registers: Most of a thread; `None` leaves it to the compiler.
        keys: Of a round, where queries meet keys.
    """

    rows: int
    warps: int
    stages: int = 1
    registers: int | None = None
    keys: int = 0


def round_up(count: int, multiple: int) -> int:
    """The least multiple that is not below `count`."""
    return -(-count // multiple) * multiple


KEY_ALIGNMENT = 128
"""Keys that passes and splits are a multiple of: the largest tile of keys."""

PLACE_TOKENS = 8
"""Tokens of a program, of one warp, that copies and rotates, or rounds queries. 4,680 of 12 heads on an H200:
copied and rotated in 7.3 us, by 32 and 4 warps in 9.4; rounded in 8.5 and 8.6.
"""

MERGE_TOKENS = 16
"""Queries of a program that merges states. 4,680 of 12 heads in two splits: 24 us, with 32 a program 28."""

DECODE_TOKENS = 128
"""Tokens of a program that decodes."""

DECODE, DECODE_TRANSPOSED = Tile(16, 1), Tile(32, 2)
"""One warp waits for no other; transposed rows of less than 32 keys are slow to write. 65,536 keys of 12
heads, preset int2: 0.146 and 0.203 ms; 0.192 and 0.236 ms in tiles of 32 on 4 warps.
"""

DECODE_SHAPED = Tile(64, 4)
"""For blocks whose rows are multiplied by a matrix."""

LATTICE_REGISTERS = 160
"""Most of a thread of `decode_hopper`. 37,440 keys of 12 heads: int8 keys 73 us, bf16 values 60; with 128
registers 74 and 58, without a limit 70 and 65.
"""

SHAPE = Tile(64, 4)
"""For the kernel that multiplies attention's states by the matrices of their values."""

HOPPER = Tile(128, 4, 4, 168, keys=128)
"""For `attention.hopper`: 4 warps attend to 64 of the queries each time, as many more to the others, one
loads. Four tiles of keys and values are 192 KiB. 65,536 keys of 12 heads: 2.1 ms.
"""


@dataclass(frozen=True)
class AttendTable:
    """Tiles of `attend_kernel` on one architecture.

    Attributes:
        fp8: For int8 keys and e4m3 values; unused before compute capability 8.9.
        wide: For bf16 values, and keys that are bf16 or int8.
        programs: That are at work at the same time on a multiprocessor, with 8-bit values where there are
            any.
    """

    fp8: Tile
    wide: Tile
    programs: int

    @classmethod
    def for_capability(cls, capability: tuple[int, int]) -> AttendTable:
        """Tiles for a compute capability.

        9.0 is measured on an H200, see docs/results.md. The others keep within their shared memory (99 KiB
        on 8.6, 8.9 and 12.0); nobody has timed them.
        """
        if capability[0] in (9, 10):
            return cls(Tile(64, 4, 3, 168, keys=128), Tile(64, 4, 3, 168, keys=64), 2)
        return cls(Tile(64, 4, 3, keys=64), Tile(64, 4, 2, keys=64), 1)


_INTERPRETER = AttendTable(Tile(16, 4, keys=32), Tile(16, 4, keys=32), 1)


def attend_table(device: torch.device) -> AttendTable:
    """Tiles for a device; on a CPU, where only the interpreter works, small ones."""
    if device.type == "cpu":
        return _INTERPRETER
    return AttendTable.for_capability(torch.cuda.get_device_capability(device))


def programs_at_once(device: torch.device, tile: Tile) -> int:
    """Programs of this tile that a device works on at the same time."""
    if device.type == "cpu":
        return 1
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return count if tile is HOPPER else attend_table(device).programs * count


def has_hopper_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `attention.hopper` runs on a device; float16 queries leave no room for its weights."""
    return dtype == torch.bfloat16 and has_gluon(device)


KNOWS_GLUON = triton.__version__.split(".")[:2] in (["3", "6"], ["3", "7"])
"""Whether Triton has the language, which may change from version to version, as it was tried."""


def has_gluon(device: torch.device) -> bool:
    """Whether kernels in Gluon run on a device: those that are measured on Hopper GPUs."""
    return KNOWS_GLUON and is_hopper(device)


SMALL_SHARED = ((8, 6), (8, 7), (8, 9), (12, 0), (12, 1))
"""Compute capabilities whose programs have 99 KiB of shared memory."""

MEAN_ROWS = 16
"""Centroids of a program that moves them or starts them; every number of rows is a multiple."""

ASSIGNED_CLUSTERS = 64
"""At most so many centroids are found by the kernel that adds up their tokens: with more, registers spill."""

MOST_ASSIGNED = 64
"""Centroids that meet a tile of tokens at a time, where there are too many for one program. At S = 37,440 and
256 centroids 112 us; with 128 131 us, with 32 150 us.
"""

CHUNK = 32
"""Rotated channels that are rounded at a time. With 64, and 200 registers, 322 us at S = 37,440, not 288."""

SPLIT_TOKENS = 512
"""Tokens of a program that measures channels or rounds scales."""


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; that of a card with little shared memory where there is no GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else SMALL_SHARED[0]


def cluster_tile(count: int, head_dim: int, device: torch.device) -> int:
    """Centroids whose tokens one program adds up: all of them, up to a limit."""
    # Of 256 at S = 37,440: 84 us with 128 a program, 91 with all of them, 102 with 64.
    largest = 64 if head_dim <= 128 else 32
    if head_dim <= 128 and capability(device) not in SMALL_SHARED:
        largest = 128
    return min(largest, max(MEAN_ROWS, int(triton.next_power_of_2(count))))


def split_tokens(tokens: int) -> int:
    """Tokens whose sum one program makes; a multiple of every tile.

    Eleven splits: with 12 heads one program for each of an H200's 132 multiprocessors, with 24 two.
    """
    return -(-tokens // (11 * 64)) * 64


def groups(head_dim: int) -> Tile:
    """For the kernels that measure channels, or round groups of them."""
    # Measured in 15 us at S = 4,680, in 47 us at 37,440; tiles half as large are slower.
    return Tile(4096 // head_dim, 4)


def assign(head_dim: int) -> Tile:
    """For the kernel that finds the nearest centroids."""
    # At S = 37,440 107 us.
    return Tile(128, 8, 3) if head_dim <= 128 else Tile(64, 4, 2)


def sums(head_dim: int, *, assigns: bool) -> Tile:
    """For the kernel that adds up clusters, and finds them if they are few."""
    if head_dim > 128:
        return Tile(32, 4, 2)
    # 64 clusters at S = 4,680, assigned on the way: 11 us; with 2 stages, or 128 tokens on 8 warps, more.
    # 256 clusters at S = 37,440: 76 us, on 4 warps 81.
    return Tile(64, 4 if assigns else 8, 3)


def residuals(head_dim: int) -> Tile:
    """For the kernel that rounds residuals."""
    # 42 us at S = 4,680, 288 us at 37,440; 321 us with all 255 registers, 299 us with 128.
    return Tile({64: 64, 128: 64, 256: 32}[head_dim], 4, registers=168)
