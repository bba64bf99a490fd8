"""Loading the transformer: one tensor at a time from sharded files of any float dtype, strictly.

The model is built without storage and its tensors are put in as they are read, so a float32 checkpoint of
54 GB never lies in memory whole, neither on the host nor on the device. Names and shapes are checked from the
files' headers before the first tensor is read. Adapters are added in float32 before a weight is rounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qvg_cli.backends.longcat.layers import TransformerConfig
from qvg_cli.backends.longcat.lora import Lora
from qvg_cli.backends.longcat.model import FLOAT32_PARTS, LongCatTransformer
from qvg_cli.errors import MissingModelError

INDEX_FILE = "diffusion_pytorch_model.safetensors.index.json"


class Checkpoint:
    """A published `dit` folder and the adapters to merge, checked but not read.

    Args:
        folder: `config.json` and one or more safetensors files, float32 or bf16.
        adapters: LoRA files.

    Raises:
        MissingModelError: A file or tensor is missing, broken, unknown or has another shape; it is named.
    """

    def __init__(self, folder: Path, adapters: Sequence[Path] = ()) -> None:
        self.config = read_config(folder)
        self._files = _weight_files(folder)
        expected = {
            name: tuple(tensor.shape) for name, tensor in empty_transformer(self.config).state_dict().items()
        }
        _check_tensors(folder, _read_shapes(self._files), expected)
        self._adapters = [Lora(path) for path in adapters]
        for adapter in self._adapters:
            _check_modules(adapter, expected)

    def load(
        self, *, dtype: torch.dtype, device: torch.device, block_dtype: torch.dtype | None = None
    ) -> LongCatTransformer:
        """The transformer, frozen, in `dtype` but for the parts that stay float32.

        Args:
            block_dtype: What the matrices of the blocks are rounded to after `dtype`; none leaves them so.
        """
        model = empty_transformer(self.config)
        for name, tensor in _read_tensors(self._files):
            module = name.removesuffix(".weight")
            for adapter in self._adapters:
                if module in adapter.shapes:
                    tensor = tensor.float() + adapter.delta(module)
            tensor = tensor.to(device=device, dtype=dtype_of(name, dtype))
            if block_dtype is not None and is_block_matrix(name):
                tensor = tensor.to(block_dtype)
            put_tensor(model, name, tensor)
        return model.eval().requires_grad_(False)


def empty_transformer(config: TransformerConfig) -> LongCatTransformer:
    """The transformer without storage."""
    with torch.device("meta"):
        return LongCatTransformer(config)


def read_config(folder: Path) -> TransformerConfig:
    """The fields of `config.json` that change the arithmetic; attention back ends are ours to choose.

    Raises:
        MissingModelError: The file or a field of it is missing.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise MissingModelError(f"cannot read {path}: {error}") from error
    return config_from(values, str(path))


def config_from(values: Mapping[str, Any], source: str) -> TransformerConfig:
    """The configuration in `values`, which come from `source`.

    Raises:
        MissingModelError: A field is missing.
    """
    names = [field.name for field in fields(TransformerConfig)]
    missing = [name for name in names if name not in values]
    if missing:
        raise MissingModelError(
            f"{source} lacks {', '.join(missing)}; it is not that of a LongCat-Video model"
        )
    chosen = {name: values[name] for name in names}
    return TransformerConfig(**{**chosen, "patch_size": tuple(values["patch_size"])})


def dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Dtype in memory of the tensor `name` of a model in `dtype`."""
    return torch.float32 if set(FLOAT32_PARTS) & set(name.split(".")) else dtype


def is_block_matrix(name: str) -> bool:
    """Whether the tensor `name` belongs to a matrix of a block, not to its norms or modulation."""
    return name.startswith("blocks.") and "norm" not in name and "adaLN_modulation" not in name


def put_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter `name` of `model`."""
    module, _, leaf = name.rpartition(".")
    model.get_submodule(module).register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))


def _weight_files(folder: Path) -> list[Path]:
    """The files that the index lists, else every safetensors file of the folder."""
    index = folder / INDEX_FILE
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values())
    except (OSError, ValueError, KeyError) as error:
        raise MissingModelError(f"cannot read {index}: {error}") from error
    return [folder / name for name in sorted(names)]


def _read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                shapes.update((name, tuple(file.get_slice(name).get_shape())) for name in names)
        except (OSError, SafetensorError) as error:
            raise MissingModelError(f"cannot read {path}: {error}") from error
    return shapes


def _read_tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            for name in names:
                yield name, file.get_tensor(name)


def _check_tensors(
    folder: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    for name, shape in expected.items():
        if name not in found:
            count = len(expected.keys() - found.keys())
            raise MissingModelError(f"{count} tensors are missing from {folder}, the first is {name}")
        if found[name] != shape:
            raise MissingModelError(
                f"tensor {name} in {folder} has shape {found[name]}, the model needs {shape}"
            )
    for name in found:
        if name not in expected:
            raise MissingModelError(f"tensor {name} in {folder} is not part of the model")


def _check_modules(adapter: Lora, expected: Mapping[str, tuple[int, ...]]) -> None:
    for module, shape in adapter.shapes.items():
        weight = expected.get(f"{module}.weight")
        if weight is None:
            raise MissingModelError(f"the adapter {adapter.path} is for {module}, which the model has not")
        if weight != shape:
            raise MissingModelError(
                f"the adapter {adapter.path} changes {module} by a matrix of {shape}, the model's is {weight}"
            )
