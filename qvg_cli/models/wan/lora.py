"""Low-rank adapters in their published formats, as changes of the weights they adapt.

A module has a down and an up matrix; a fused layer (query, key and value in one matrix) may have one stacked
down matrix and `n` up blocks, each for its share of the output rows. Ranks and `n` are read from the file.
What the product is multiplied by is `alpha / rank`: alpha is given, or stored beside the matrices, or the
rank. LongCat's files store the quotient itself, 0.5 for rank 128; leaving it out doubles their strength.

Source of the names: meituan-longcat/LongCat-Video, `longcat_video/modules/lora_utils.py`; what PEFT's
`get_peft_model_state_dict` and diffusers' `save_lora_weights` write; NVlabs/LongLive, `models/lora.pt`, which
has those of PEFT under `generator_lora`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from qvg_cli.config.schema import LoraConfig
from qvg_cli.environment import expand_user
from qvg_cli.errors import MissingModelError
from qvg_cli.models.wan.checkpoint import read_published

_KEYS = ("generator_lora",)
"""Where a published pickle has the model's adapter; that of a critic may lie beside it."""
_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.")
"""What PEFT, other programs with the original names, and diffusers put before a module's path."""
_LONGCAT_PREFIX = "lora___lorahyphen___"
_LONGCAT_DOT = "___lorahyphen___"
_LEAF = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"(?P<down>lora_A(?:\.default)?\.weight|lora_down\.weight|lora\.down\.weight)|"
    r"(?P<up>lora_B(?:\.default)?\.weight|lora_up\.(?:blocks\.(?P<index>\d+)\.)?weight|lora\.up\.weight)|"
    r"(?P<alpha>alpha)|(?P<factor>alpha_scale))"
)


@dataclass
class _Adapter:
    """Names in the file of one module's tensors; the up blocks by their index."""

    down: str = ""
    factor: str = ""
    alpha: str = ""
    ups: dict[int, str] = field(default_factory=dict)


def open_loras(configs: Sequence[LoraConfig]) -> list[Lora]:
    return [
        Lora(expand_user(each.file), weight=each.weight, alpha=each.alpha, hint="model.lora names it")
        for each in configs
    ]


class Lora:
    """One adapter file, whose tensors are read when they are asked for; `MissingModelError` if it is none.

    Args:
        path: `.safetensors`, or a `.pt` of tensors.
        weight: How strong it is; 1 is as it was trained.
        alpha: Instead of the one in the file, or of the rank where the file has none.

    Attributes:
        shapes: Paths of the adapted modules, as the file has them, to `(out, in)` of what is added to their
            weights.
    """

    def __init__(
        self, path: Path, *, weight: float = 1.0, alpha: float | None = None, hint: str | None = None
    ) -> None:
        self.path = path
        self._weight = weight
        self._alpha = alpha
        if not path.is_file():
            raise MissingModelError(f"no adapter at {path}", hint=hint)
        self._tensors = read_published(path, _KEYS, what="adapter")
        self._adapters: dict[str, _Adapter] = {}
        self._modules: dict[str, str] = {}
        for name in self._tensors:
            self._place(name)
        self.shapes = {module: self._shape(module) for module in self._adapters}

    def fit(self, expected: Mapping[str, Tensor], model_name: Callable[[str], str]) -> None:
        """Find the weights of a model that it changes; a `MissingModelError` names one that does not fit.

        Args:
            model_name: From a published name of a tensor to the model's.
        """
        for module, shape in self.shapes.items():
            name = model_name(f"{module}.weight")
            if name not in expected:
                raise MissingModelError(
                    f"the adapter {self.path} is for {module}, which the model does not have: "
                    f"the first unknown tensor is {self._adapters[module].down}"
                )
            if tuple(expected[name].shape) != shape:
                raise MissingModelError(
                    f"the adapter {self.path} changes {module} by a matrix of {shape}, "
                    f"the model's is {tuple(expected[name].shape)}"
                )
            self._modules[name] = module

    def merge(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor `name` with what the adapter adds to it, in float32; others come back as they are."""
        module = self._modules.get(name)
        return tensor if module is None else tensor.float() + self.delta(module)

    def delta(self, module: str) -> Tensor:
        """What the adapter adds to the weight of `module`, `[out, in]` float32."""
        adapter = self._adapters[module]
        down = self._tensors[adapter.down].float()
        ups = [self._tensors[adapter.ups[index]].float() for index in sorted(adapter.ups)]
        rank = ups[0].shape[1]
        if self._alpha is not None:
            factor = self._alpha / rank
        elif adapter.factor:
            factor = float(self._tensors[adapter.factor])
        else:
            factor = float(self._tensors[adapter.alpha]) / rank if adapter.alpha else 1.0
        parts = [up @ part for up, part in zip(ups, down.chunk(len(ups)), strict=True)]
        return self._weight * factor * torch.cat(parts)

    def _place(self, name: str) -> None:
        path = name.removeprefix(_LONGCAT_PREFIX).replace(_LONGCAT_DOT, ".")
        for prefix in _PREFIXES:
            path = path.removeprefix(prefix)
        found = _LEAF.fullmatch(path)
        if found is None:
            raise MissingModelError(
                f"unknown tensor {name} in the adapter {self.path}",
                hint="a LoRA is read under the names of PEFT, diffusers or the model's own code",
            )
        adapter = self._adapters.setdefault(found["module"], _Adapter())
        if found["up"]:
            adapter.ups[int(found["index"] or 0)] = name
        elif found["down"]:
            adapter.down = name
        elif found["alpha"]:
            adapter.alpha = name
        else:
            adapter.factor = name

    def _shape(self, module: str) -> tuple[int, int]:
        adapter = self._adapters[module]
        if not (adapter.down and adapter.ups):
            raise MissingModelError(f"the adapter {self.path} is incomplete: tensors of {module} are missing")
        ups = [self._tensors[name] for name in adapter.ups.values()]
        down = self._tensors[adapter.down]
        if any(tensor.dim() != 2 for tensor in (down, *ups)):
            raise MissingModelError(f"the adapter {self.path} changes {module} by what is no matrix")
        if down.shape[0] != sum(up.shape[1] for up in ups):
            raise MissingModelError(f"the adapter {self.path} is broken: the ranks of {module} do not match")
        for name in (adapter.alpha, adapter.factor):
            if name and self._tensors[name].numel() != 1:
                raise MissingModelError(f"the adapter {self.path} is broken: {name} is no number")
        return sum(up.shape[0] for up in ups), down.shape[1]
