"""The one place that decides whether Triton kernels or the torch reference run.

Kernels run on CUDA devices of compute capability 8.0 and later, everything else takes the reference. The
variable QVG_KERNELS overrides: `reference` never takes a kernel, `triton` always does, on a CPU with
TRITON_INTERPRET=1, which is how tests follow a whole call.
"""

import os
from functools import cache
from importlib.util import find_spec

import torch

VARIABLE = "QVG_KERNELS"
CHOICES = ("auto", "triton", "reference")
OLDEST_CAPABILITY = (8, 0)
OLDEST_FP8_CAPABILITY = (8, 9)


def choice() -> str:
    """What QVG_KERNELS asks for, "auto" if it is not set.

    Raises:
        ValueError: It is set to something else.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in CHOICES:
        raise ValueError(f"{VARIABLE}={asked} is not possible; choose one of {', '.join(CHOICES)}")
    return asked


def why_reference(device: torch.device) -> str | None:
    """Why the torch reference runs on `device`; `None` if the kernels do."""
    asked = choice()
    if asked == "reference":
        return f"{VARIABLE}=reference"
    if asked == "auto":
        if device.type != "cuda":
            return f"device {device.type}"
        capability = _capability(device.index or 0)
        if capability < OLDEST_CAPABILITY:
            return f"compute capability {capability[0]}.{capability[1]} is older than 8.0"
    return None if _has_triton() else "triton is not installed"


def uses_kernels(device: torch.device) -> bool:
    """Whether Triton kernels run on `device`."""
    return why_reference(device) is None


def has_fp8(device: torch.device) -> bool:
    """Whether the kernels can multiply e4m3 values on `device`."""
    return device.type == "cuda" and _capability(device.index or 0) >= OLDEST_FP8_CAPABILITY


def is_hopper(device: torch.device) -> bool:
    """Whether `device` is of compute capability 9.0."""
    return device.type == "cuda" and _capability(device.index or 0) == (9, 0)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
