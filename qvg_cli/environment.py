"""Variables of the environment that decide what a run does, checked before anything is loaded. No torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from qvg_cli.errors import UsageError

KERNELS = ("QVG_KERNELS", ("auto", "triton", "reference"))
"""As `qvg_kernels.runtime.dispatch`, which imports torch."""
_SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
"""That huggingface_hub reads as whole numbers when it is imported."""


def check_environment() -> None:
    """Refuse values that nothing could be made of; `UsageError` if a variable has one; it is named."""
    variable, choices = KERNELS
    asked = os.environ.get(variable)
    if asked and asked not in choices:
        raise UsageError(f"{variable}={asked} is not possible", hint=f"known: {', '.join(choices)}")
    for name in _SECONDS:
        value = os.environ.get(name)
        if value is not None and not value.strip().isdecimal():
            raise UsageError(f"{name}={value} is not a whole number of seconds", hint="e.g. 10, or unset it")


def expand_user(name: str | Path) -> Path:
    """`name` with a leading ~ as a home folder; a user that is not there leaves it as it is."""
    return Path(os.path.expanduser(name))


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
