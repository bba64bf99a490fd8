"""What families share when they load stock models: the dtype, and one message for what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from qvg_cli.config.schema import ModelConfig, RunConfig
from qvg_cli.errors import MissingModelError, UsageError
from qvg_kernels.attention.attend import how_attended
from qvg_kernels.runtime.dispatch import has_fp8

Model = TypeVar("Model", AutoencoderKLWan, WanTransformer3DModel)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype that `config` means on `device`."""
    return _DTYPES.get(config.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32)


def attention_words(config: RunConfig, device: torch.device) -> str:
    """How the run's attention reads its history on `device`, in words.

    Raises:
        UsageError: The arithmetic that is asked for is not the device's.
    """
    cache = config.cache
    if cache.arithmetic == "fp8" and not has_fp8(device):
        raise UsageError(
            f"cache.arithmetic=fp8 is not possible on {device}",
            hint="set cache.arithmetic=bf16 or leave it out; fp8 needs compute capability 8.9 or later",
        )
    return how_attended(device, model_dtype(config.model, device), [cache.k, cache.v], cache.arithmetic)


def load_pretrained(model_class: type[Model], folder: Path, dtype: torch.dtype) -> Model:
    """A frozen model of a folder in diffusers' layout, on the CPU.

    Raises:
        MissingModelError: The folder is missing or broken.
    """
    try:
        model = model_class.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise MissingModelError(f"cannot load {folder}: {error}") from error
    return model.eval().requires_grad_(False)
