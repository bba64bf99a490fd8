"""The device that a run computes on, its dtype there, and how attention is computed on it."""

import os

import torch

from qvg_cli.config.schema import ModelConfig, RunConfig
from qvg_cli.errors import UsageError
from qvg_kernels.attention.attend import how_attended
from qvg_kernels.runtime.dispatch import has_fp8

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """The device that `name` means here, "auto" being the first GPU or the CPU; else a `UsageError`."""
    device = _find_device(name)
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type == "cpu" and os.environ.get("QVG_KERNELS") == "triton" and not is_interpreted:
        raise UsageError(
            "QVG_KERNELS=triton does not work on a CPU",
            hint="unset it; for tests, TRITON_INTERPRET=1 runs the kernels in Triton's interpreter",
        )
    return device


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"unknown device {name!r}", hint="use auto, cpu, cuda, cuda:0, cuda:1, ..."
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported", hint="use auto, cpu, cuda, cuda:0, cuda:1, ...")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            found = f"this machine has {count}" if count else "no usable GPU found"
            raise UsageError(f"device {name!r} is not available: {found}", hint="use --device cpu")
        device = torch.device("cuda", device.index or 0)
    return device


def make_current(device: torch.device) -> None:
    """Let kernels and events of this thread be those of `device`: Triton's do not look at their tensors."""
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)


def model_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    return _DTYPES.get(config.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32)


def attention_words(config: RunConfig, device: torch.device) -> str:
    """How the run's attention reads its history on `device`; `UsageError` if it lacks the arithmetic."""
    cache = config.cache
    if cache.arithmetic == "fp8" and not has_fp8(device):
        raise UsageError(
            f"cache.arithmetic=fp8 is not supported on {device}",
            hint="use cache.arithmetic=bf16 or the default; fp8 needs compute capability 8.9 or later",
        )
    dtype = model_dtype(config.model, device)
    pairs = [(cache.k, cache.v), *((layer.k, layer.v) for layer in cache.layers.values())]
    ways = [how_attended(device, dtype, pair, cache.arithmetic) for pair in pairs]
    return "; in some layers ".join(dict.fromkeys(ways))
