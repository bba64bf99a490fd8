"""What packed keys and values become in the workspace, where queries and weights meet them.

Queries are rounded as keys are, weights as values. A rounded query errs alike for all of its keys, and int8
rounds it more finely than e4m3 at the same speed. e4m3 values add more to the output's error than int8 keys
do, so they are taken only where they save time (docs/results.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qvg_kernels.runtime import launch
from qvg_kernels.runtime.dispatch import has_fp8


@dataclass(frozen=True)
class Operands:
    """Kinds of numbers; none are those of the queries.

    Attributes:
        words: How a run names them.
    """

    key: torch.dtype | None
    value: torch.dtype | None
    words: str

    def pair_bytes(self, wide: torch.dtype) -> int:
        """Of one channel of a key and of a value, where queries are `wide`."""
        return (self.key or wide).itemsize + (self.value or wide).itemsize


BF16 = Operands(None, None, "bf16")
INT8 = Operands(torch.int8, None, "int8 and bf16")
FP8 = Operands(torch.int8, torch.float8_e4m3fn, "int8 and fp8")

ASKED = {"bf16": BF16, "int8": INT8, "fp8": FP8}


def choose(arithmetic: str, device: torch.device, dtype: torch.dtype) -> Operands:
    """The operands that `reference.Arithmetic` means on a device, for queries of `dtype`."""
    if arithmetic in ASKED:
        return ASKED[arithmetic]
    if launch.has_hopper_kernel(device, dtype):
        return INT8
    return FP8 if has_fp8(device) else BF16
