"""Block sizes of the kernels, by architecture and shape: read, never tuned at run time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

from qvg_kernels.runtime.dispatch import is_hopper

PLACE_TOKENS = 32
"""Tokens of a program that copies and rotates."""

STRETCH_TOKENS = 128
"""Tokens of a program that decodes."""


@dataclass(frozen=True)
class DecodeBlocks:
    """Tokens that a decoding program takes at once, and its warps."""

    tokens: int
    warps: int


DECODE = DecodeBlocks(16, 1)
DECODE_TRANSPOSED = DecodeBlocks(32, 2)
"""One warp waits for no other; transposed rows of less than 32 keys are slow to write. H200, 65,536 keys of
12 heads, preset int2: 0.146 and 0.203 ms; 0.192 and 0.236 ms in blocks of 32 on 4 warps.
"""


LATTICE_REGISTERS = 160
"""Most of a thread of `decode_lattice`. H200, 37,440 keys of 12 heads: int8 keys 73 us, bf16 values 60; with
128 74 and 58, without a limit 70 and 65.
"""


@dataclass(frozen=True)
class AttendBlocks:
    """Shape of a program of `attend_kernel`.

    Attributes:
        keys: Of a round.
        stages: Rounds whose keys and values are loaded at once.
        registers: Most of a thread; none leaves it to the compiler.
    """

    queries: int
    keys: int
    stages: int
    warps: int
    registers: int | None = None


HOPPER = AttendBlocks(128, 128, 4, 4, 168)
"""Of `attend_hopper`: 4 warps attend to 64 of the queries each time, as many more to the others, one loads.
Four blocks of keys and values are 192 KiB. H200, 65,536 keys of 12 heads: 2.1 ms.
"""


@dataclass(frozen=True)
class AttendTable:
    """Blocks of `attend_kernel` on one architecture.

    Attributes:
        fp8: For int8 keys and e4m3 values; unused before compute capability 8.9.
        wide: For bf16 values, and keys that are bf16 or int8.
        programs: That run at the same time on a multiprocessor, with 8-bit values where there are any.
    """

    fp8: AttendBlocks
    wide: AttendBlocks
    programs: int

    @classmethod
    def for_capability(cls, capability: tuple[int, int]) -> AttendTable:
        """Blocks for a compute capability.

        9.0 is measured on an H200, see docs/results.md. The others keep within their shared memory (99 KiB
        on 8.6, 8.9 and 12.0); nobody has timed them.
        """
        if capability[0] in (9, 10):
            return cls(AttendBlocks(64, 128, 3, 4, 168), AttendBlocks(64, 64, 3, 4, 168), 2)
        return cls(AttendBlocks(64, 64, 3, 4), AttendBlocks(64, 64, 2, 4), 1)


_INTERPRETER = AttendTable(AttendBlocks(16, 32, 1, 4), AttendBlocks(16, 32, 1, 4), 1)


def attend_table(device: torch.device) -> AttendTable:
    """Blocks for a device; on a CPU, where only the interpreter runs, small ones."""
    if device.type == "cpu":
        return _INTERPRETER
    return AttendTable.for_capability(torch.cuda.get_device_capability(device))


def programs_at_once(device: torch.device, blocks: AttendBlocks) -> int:
    """Programs of these blocks that a device runs at the same time."""
    if device.type == "cpu":
        return 1
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return count if blocks is HOPPER else attend_table(device).programs * count


def has_hopper_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `attend_hopper` runs on a device; float16 queries leave no room for its weights."""
    return dtype == torch.bfloat16 and has_gluon(device)


def has_gluon(device: torch.device) -> bool:
    """Whether kernels in Gluon run on a device: those that are measured on Hopper GPUs."""
    return is_hopper(device) and _knows_gluon()


@cache
def _knows_gluon() -> bool:
    """Whether Triton has the language, which may change from version to version, as it was tried."""
    return triton.__version__.split(".")[:2] in (["3", "6"], ["3", "7"])
