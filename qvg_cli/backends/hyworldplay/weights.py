"""Loading the transformer strictly, and making the published checkpoint a quarter of its size.

The published names are diffusers' names once the prefixes of training wrappers are gone.

Source of the names: `tencent/HY-WorldPlay`, `wan_distilled_model/model.pt`, a pickle with `generator` and
`generator_ema`, in float32; the reference runs `generator`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qvg_cli.backends.hyworldplay.model import build_transformer
from qvg_cli.errors import MissingModelError

TRANSFORMER_CONFIG: Mapping[str, object] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 48,
    "out_channels": 48,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 14336,
    "num_layers": 30,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
"""Of the published checkpoint: that of Wan2.2-TI2V-5B, which it extends."""
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_FLOAT32_PARTS = ("time_embedder", "action_embedder", "scale_shift_table", "norm2")
"""As diffusers' `_keep_in_fp32_modules` of the Wan transformer; actions are embedded as times are."""
_INDEX = "diffusion_pytorch_model.safetensors.index.json"
_PART_BYTES = 2 * 2**30


def diffusers_name(name: str) -> str:
    """diffusers' name of a published tensor."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("model.")


def load_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype that a tensor is held in, in a model of `dtype`: small ones that decide much stay float32."""
    return torch.float32 if any(part in _FLOAT32_PARTS for part in name.split(".")) else dtype


def transformer_from_published(
    state: Mapping[str, Tensor], config: Mapping[str, object], dtype: torch.dtype = torch.float32
) -> WanTransformer3DModel:
    """Build the transformer from tensors under their published names, with or without wrappers' prefixes.

    Args:
        config: Arguments of `WanTransformer3DModel`.

    Raises:
        MissingModelError: A tensor is missing, unknown or has another shape; it is named.
    """
    model = _empty_transformer(config)
    renamed = {diffusers_name(name): tensor for name, tensor in state.items()}
    _check_shapes(_shapes(renamed), _shapes(model.state_dict()))
    cast = {name: tensor.to(load_dtype(name, dtype)) for name, tensor in renamed.items()}
    model.load_state_dict(cast, strict=True, assign=True)
    return model


def load_transformer(folder: Path, dtype: torch.dtype, device: torch.device) -> WanTransformer3DModel:
    """Load the transformer that `convert_checkpoint` wrote to `folder`, tensor by tensor to `device`.

    Raises:
        MissingModelError: The folder is not whole, or does not fit its config.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8-sig"))
        state: dict[str, Tensor] = {}
        for file_name in sorted(set(index["weight_map"].values())):
            with safe_open(folder / file_name, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a mapping
                    state[name] = shard.get_tensor(name).to(device, load_dtype(name, dtype))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise MissingModelError(f"cannot load the transformer from {folder}: {error}") from error
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    return transformer_from_published(state, settings, dtype)


def convert_checkpoint(
    source: Path, config: Mapping[str, object], folder: Path, *, part_bytes: int = _PART_BYTES
) -> None:
    """Write the `generator` of a published `model.pt` to `folder`: its config, and bf16 safetensors in parts.

    The pickle is mapped, not read, and only one part is in memory at a time.

    Args:
        config: Arguments of `WanTransformer3DModel`.

    Raises:
        MissingModelError: The file is not a checkpoint of this model; what is wrong is named.
    """
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        published = {diffusers_name(name): tensor for name, tensor in checkpoint["generator"].items()}
    except (OSError, RuntimeError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise MissingModelError(f"cannot read a generator from {source}: {error}") from error
    _check_shapes(_shapes(published), _shapes(_empty_transformer(config).state_dict()))

    folder.mkdir(parents=True, exist_ok=True)
    parts = list(_cut(published, part_bytes))
    weight_map = {}
    for number, names in enumerate(parts, 1):
        file_name = f"diffusion_pytorch_model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(
            {name: published[name].to(load_dtype(name, torch.bfloat16)).contiguous() for name in names},
            folder / file_name,
        )
        weight_map.update(dict.fromkeys(names, file_name))
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    # The index comes last: a folder with one is whole.
    (folder / _INDEX).write_text(json.dumps({"weight_map": weight_map}, indent=2), encoding="utf-8")


def _empty_transformer(config: Mapping[str, object]) -> WanTransformer3DModel:
    """The transformer without storage."""
    try:
        with torch.device("meta"):
            return build_transformer(config)
    except TypeError as error:
        raise MissingModelError(f"config.json does not describe this transformer: {error}") from error


def _cut(tensors: Mapping[str, Tensor], part_bytes: int) -> Iterator[list[str]]:
    """Names of the tensors of each part, in their order."""
    names: list[str] = []
    held = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * load_dtype(name, torch.bfloat16).itemsize
        if names and held + size > part_bytes:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise MissingModelError(f"tensor {name} is missing from the checkpoint")
        if found[name] != shape:
            raise MissingModelError(f"tensor {name} has shape {found[name]}, the model needs {shape}")
    for name in found:
        if name not in expected:
            raise MissingModelError(f"tensor {name} is not part of the model")
