"""The processes that make one video together, as torchrun says in the environment; without it, there is one.

Two share the rows of a model's guidance, each with the whole model. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvg_cli.errors import UsageError

if TYPE_CHECKING:
    from qvg_cli.config import RunConfig


@dataclass(frozen=True)
class Launch:
    """This process among those of its command.

    Attributes:
        rank: 0 leads: it plans, reads prompts, makes pixels, writes and prints. The others only compute.
        local_rank: Among the processes of its machine; the number of its GPU.
        num_processes: Of all machines.
        num_local: Of this machine.
    """

    rank: int = 0
    local_rank: int = 0
    num_processes: int = 1
    num_local: int = 1

    def check(self, config: RunConfig) -> None:
        """Refuse a run that these processes cannot share.

        Raises:
            UsageError: They are too many, or there is one row only.
        """
        if self.num_processes == 1:
            return
        if self.num_processes != 2:
            raise UsageError(
                f"{self.num_processes} processes were started; a video is made by one, or by the two that "
                "share the rows of its guidance",
                hint="start it with torchrun --standalone --nproc-per-node 2, or without torchrun",
            )
        if config.num_rows != 2:
            raise UsageError(
                f"two processes were started, and {config.backend} computes one row a step as it is "
                "configured; two share the rows of a guidance",
                hint="start it without torchrun; longcat with sampler.mode=guided has two rows",
            )


def find_launch(environment: Mapping[str, str]) -> Launch:
    """What torchrun tells each process; one process where it has not started this one.

    Raises:
        UsageError: A variable that torchrun sets is missing or no number.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return Launch()
    numbers = []
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        value = environment.get(name, "")
        if not value.isdecimal():
            raise UsageError(
                f"{name}={value} is not a number, and TORCHELASTIC_RUN_ID says that torchrun started this",
                hint="start it with torchrun, or unset TORCHELASTIC_RUN_ID",
            )
        numbers.append(int(value))
    return Launch(*numbers)
