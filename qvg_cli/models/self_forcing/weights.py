"""Loading the transformer: published names to diffusers' names, strictly.

Source of the names: gdhe17/Self-Forcing `self_forcing_dmd.pt` and Wan-Video/Wan2.1 `wan/modules/model.py`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qvg_cli.errors import MissingModelError

_KEPT_IN_FLOAT32 = frozenset(WanTransformer3DModel._keep_in_fp32_modules)
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_TOP_LEVEL = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "patch_embedding": "patch_embedding",
}
_IN_BLOCK = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{
        f"{original}.{part}": f"{name}.{target}"
        for original, name in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for part, target in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
}


def diffusers_name(name: str) -> str | None:
    """diffusers' name of a published tensor; none if the model has no such tensor."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    name = name.removeprefix("model.")
    table, prefix = _TOP_LEVEL, ""
    if match := re.fullmatch(r"(blocks\.\d+\.)(.+)", name):
        table, prefix, name = _IN_BLOCK, match[1], match[2]
    if name in table:
        return prefix + table[name]
    stem, _, leaf = name.rpartition(".")
    return f"{prefix}{table[stem]}.{leaf}" if stem in table else None


def load_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype that the tensor `name` of diffusers is held in, in a model of `dtype`."""
    return dtype if _KEPT_IN_FLOAT32.isdisjoint(name.split(".")) else torch.float32


def read_published(path: Path) -> dict[str, Tensor]:
    """The generator's tensors of a published checkpoint, under the names in the file.

    Args:
        path: `.safetensors`, or a `.pt` of tensors; a pickle that holds anything else is not executed.

    Raises:
        MissingModelError: The file is broken, holds more than tensors, or has no generator.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise MissingModelError(f"{path} holds more than tensors and was not loaded") from error
    except (OSError, RuntimeError, SafetensorError) as error:
        raise MissingModelError(f"cannot read {path}: {error}") from error
    # The averaged weights are the ones to use; a bare state dict is accepted too.
    for key in ("generator_ema", "generator", "model"):
        if isinstance(found.get(key), dict):
            found = found[key]
            break
    if not found or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise MissingModelError(f"{path} has no generator", hint="its keys are " + ", ".join(map(str, found)))
    return dict(found)


def transformer_from_published(
    state: Mapping[str, Tensor], config: Mapping[str, object], dtype: torch.dtype = torch.float32
) -> WanTransformer3DModel:
    """Build the transformer from the tensors of a checkpoint.

    Args:
        state: All tensors of the generator, with or without the prefixes of training wrappers, or under
            diffusers' names.
        config: Arguments of `WanTransformer3DModel`.
        dtype: Of the weights, but for those that diffusers keeps in float32.

    Raises:
        MissingModelError: A tensor is missing, unknown or has another shape; it is named.
    """
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
    expected = model.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = name if name in expected else diffusers_name(name)
        if target is None:
            raise MissingModelError(f"unknown tensor {name} in the checkpoint")
        renamed[target] = tensor.to(load_dtype(target, dtype))
    _check_tensors(renamed, expected)
    model.load_state_dict(renamed, strict=True, assign=True)
    return model


def convert_checkpoint(source: Path, config: Mapping[str, object], folder: Path) -> None:
    """Write the generator of a published checkpoint to `folder` in diffusers' layout, in bf16.

    The tensors that diffusers keeps in float32 stay so: a model loaded in bf16 is the same from both files.

    Args:
        config: Arguments of `WanTransformer3DModel`.

    Raises:
        MissingModelError: The file is not a checkpoint of this model; what is wrong is named.
    """
    state = read_published(source)
    try:
        model = transformer_from_published(state, config, torch.bfloat16)
    except TypeError as error:
        raise MissingModelError(f"config.json does not describe this transformer: {error}") from error
    model.save_pretrained(folder)


def _check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in expected:
        if name not in found:
            raise MissingModelError(f"tensor {name} is missing from the checkpoint")
        if found[name].shape != expected[name].shape:
            raise MissingModelError(
                f"tensor {name} has shape {tuple(found[name].shape)}, "
                f"the model needs {tuple(expected[name].shape)}"
            )
    for name in found:
        if name not in expected:
            raise MissingModelError(f"tensor {name} is not part of the model")
