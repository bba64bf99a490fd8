"""Low-rank adapters in the published format, as changes of the weights they adapt.

A fused layer (query, key and value in one matrix) has `n` adapters: one stacked down matrix and `n` up
blocks, each for its share of the output rows. Ranks and `n` are read from the file, and so is the factor:
published adapters of rank 128 store 0.5, and leaving it out doubles their strength.

Source: meituan-longcat/LongCat-Video, `longcat_video/modules/lora_utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qvg_cli.errors import MissingModelError

_PREFIX = "lora___lorahyphen___"
_DOT = "___lorahyphen___"
_FACTOR = "alpha_scale"
_DOWN = "lora_down.weight"
_UP = re.compile(r"lora_up\.(?:blocks\.(\d+)\.)?weight")


@dataclass
class _Adapter:
    """Names in the file of one module's tensors; the up blocks by their index."""

    down: str = ""
    factor: str = ""
    ups: dict[int, str] = field(default_factory=dict)


class Lora:
    """One adapter file; tensors are read when they are asked for.

    Args:
        hint: What to do where there is no such file.

    Attributes:
        shapes: Paths of the adapted modules to `(out, in)` of what is added to their weights.

    Raises:
        MissingModelError: The file is not there, not whole, or not in the published format.
    """

    def __init__(self, path: Path, *, hint: str | None = None) -> None:
        self.path = path
        if not path.is_file():
            raise MissingModelError(f"there is no adapter {path}", hint=hint)
        try:
            with safe_open(path, framework="pt") as file:
                sizes = {name: file.get_slice(name).get_shape() for name in list(file.keys())}
        except (OSError, SafetensorError) as error:
            raise MissingModelError(f"cannot read the adapter {path}: {error}") from error
        self._adapters: dict[str, _Adapter] = {}
        for name in sizes:
            self._place(name)
        self.shapes: dict[str, tuple[int, int]] = {}
        for module, adapter in self._adapters.items():
            if not (adapter.down and adapter.factor and adapter.ups):
                raise MissingModelError(f"the adapter {path} is not whole: tensors of {module} are missing")
            ups = [sizes[name] for name in adapter.ups.values()]
            rank, width = sizes[adapter.down]
            if rank != sum(up[1] for up in ups):
                raise MissingModelError(f"the adapter {path} is broken: the ranks of {module} do not match")
            self.shapes[module] = sum(up[0] for up in ups), width

    def check(self, expected: Mapping[str, Tensor]) -> None:
        """Refuse an adapter of a model with other tensors than `expected`.

        Raises:
            MissingModelError: A module is unknown or has another shape; it is named.
        """
        for module, shape in self.shapes.items():
            weight = expected.get(f"{module}.weight")
            if weight is None:
                raise MissingModelError(f"the adapter {self.path} is for {module}, which the model has not")
            if tuple(weight.shape) != shape:
                raise MissingModelError(
                    f"the adapter {self.path} changes {module} by a matrix of {shape}, "
                    f"the model's is {tuple(weight.shape)}"
                )

    def merge(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor `name` with what the adapter adds to it, in float32; others come back as they are."""
        module = name.removesuffix(".weight")
        return tensor.float() + self.delta(module) if module in self.shapes else tensor

    def delta(self, module: str) -> Tensor:
        """What the adapter adds to the weight of `module`, `[out, in]` float32."""
        adapter = self._adapters[module]
        with safe_open(self.path, framework="pt") as file:
            down = file.get_tensor(adapter.down).float()
            factor = float(file.get_tensor(adapter.factor))
            ups = [file.get_tensor(adapter.ups[index]).float() for index in sorted(adapter.ups)]
        parts = [up @ part for up, part in zip(ups, down.chunk(len(ups)), strict=True)]
        return factor * torch.cat(parts)

    def _place(self, name: str) -> None:
        stem, _, leaf = name.partition(".")
        up = _UP.fullmatch(leaf)
        if not stem.startswith(_PREFIX) or not (up or leaf in (_DOWN, _FACTOR)):
            raise MissingModelError(f"unknown tensor {name} in the adapter {self.path}")
        module = stem.removeprefix(_PREFIX).replace(_DOT, ".")
        adapter = self._adapters.setdefault(module, _Adapter())
        if up:
            adapter.ups[int(up[1] or 0)] = name
        elif leaf == _DOWN:
            adapter.down = name
        else:
            adapter.factor = name
