"""Which of the processes this one is, where torchrun has started several. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qvg_cli.errors import UsageError


@dataclass(frozen=True)
class Launch:
    """What torchrun tells each process: its number among all, and on its machine, and how many these are."""

    rank: int = 0
    local_rank: int = 0
    num_processes: int = 1
    num_local: int = 1


def find_launch() -> Launch:
    """The launch of this process, a single one without torchrun; `UsageError` if a variable is no number."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Launch()
    numbers = []
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        value = os.environ.get(name, "")
        if not value.isdecimal():
            raise UsageError(
                f"{name}={value} is not a number, but TORCHELASTIC_RUN_ID says that torchrun started "
                "this process",
                hint="start with torchrun, or unset TORCHELASTIC_RUN_ID",
            )
        numbers.append(int(value))
    return Launch(*numbers)
