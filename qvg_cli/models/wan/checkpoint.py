"""A transformer's weights on the disk: checked by name and shape, read tensor by tensor, converted once.

Files are mapped into memory, so their names and shapes come before the first tensor is read, and a checkpoint
of 54 GB never lies in memory whole. Adapters are added in float32 before a weight is rounded.

Source of the names: gdhe17/Self-Forcing `self_forcing_dmd.pt` and Wan-Video/Wan2.1 `wan/modules/model.py`;
tencent/HY-WorldPlay `wan_distilled_model/model.pt`, whose names are diffusers' behind wrappers' prefixes.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from zipfile import is_zipfile

import torch
from diffusers import WanTransformer3DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qvg_cli.errors import MissingModelError
from qvg_cli.planning.sizes import read_layout

if TYPE_CHECKING:
    from qvg_cli.models.wan.lora import Lora

ModelT = TypeVar("ModelT", bound=nn.Module)
Tensors = Mapping[str, Tensor]

INDEX_FILE = "diffusion_pytorch_model.safetensors.index.json"
_PART_BYTES = 3 * 2**30
WEIGHTS_KEYS = {
    "auto": ("generator_ema", "generator", "model"),
    "ema": ("generator_ema",),
    "raw": ("generator", "model"),
}
"""Where a published pickle has the model, by `weights_key`; the first that is there is taken."""
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
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


class Checkpoint(Generic[ModelT]):
    """Weights that fit a model, not read yet; a `MissingModelError` names the first tensor that does not.

    Args:
        tensors: All of its tensors, under its own names or published ones.
        place: Where they are, for messages.
    """

    def __init__(
        self, build: Callable[[], ModelT], tensors: Tensors, place: object, adapters: Sequence[Lora] = ()
    ) -> None:
        self._build = build
        self._adapters = adapters
        # The first model that is asked for.
        self._unused: ModelT | None = self._empty()
        expected = self._unused.state_dict()
        self._tensors = {model_name(name, expected): tensor for name, tensor in tensors.items()}
        check_tensors(self._tensors, expected, place)
        for adapter in adapters:
            adapter.fit(expected, lambda name: model_name(name, expected))

    def load(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        *,
        matrix_dtype: torch.dtype | None = None,
        shard: Callable[[nn.Module], None] = lambda model: None,
    ) -> ModelT:
        """The model, frozen, in `dtype` but for the parts that stay float32.

        Args:
            matrix_dtype: What the matrices of the blocks are rounded to after `dtype`; `None` leaves them so.
            shard: Divides the parameters of the empty model among processes.
        """
        model, self._unused = self._unused, None
        if model is None:
            model = self._empty()
        shard(model)
        for name in self._tensors:
            tensor = self._merged(name).to(device=device, dtype=dtype_of(model, name, dtype))
            if matrix_dtype is not None and is_block_matrix(model, name):
                tensor = tensor.to(matrix_dtype)
            put_tensor(model, name, tensor)
        return model.eval().requires_grad_(False)

    def write(self, folder: Path, config: Mapping[str, object], *, part_bytes: int = _PART_BYTES) -> None:
        """Write `folder` in diffusers' layout, in bf16 and in parts of which one is in memory at a time.

        The tensors that stay float32 do so here: a model loaded in bf16 is the same from both.
        """
        model = self._empty()
        folder.mkdir(parents=True, exist_ok=True)
        parts = list(_cut(self._tensors, lambda name: dtype_of(model, name, torch.bfloat16), part_bytes))
        stem = INDEX_FILE.partition(".")[0]
        weight_map = {}
        for number, part in enumerate(parts, 1):
            middle = f"-{number:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
            file_name = f"{stem}{middle}.safetensors"
            cast = {name: self._merged(name).to(dtype).contiguous() for name, dtype in part.items()}
            save_file(cast, folder / file_name, {"format": "pt"})
            weight_map.update(dict.fromkeys(part, file_name))
        about = {"_class_name": WanTransformer3DModel.__name__, **config}
        (folder / "config.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
        if len(parts) > 1:
            # The index comes last: a folder with one is whole.
            index = {"metadata": {}, "weight_map": weight_map}
            (folder / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _merged(self, name: str) -> Tensor:
        """The tensor `name` with what the adapters add to it, not rounded."""
        tensor = self._tensors[name]
        for adapter in self._adapters:
            tensor = adapter.merge(name, tensor)
        return tensor

    def _empty(self) -> ModelT:
        try:
            with _Empty():
                model = self._build()
        except TypeError as error:
            raise MissingModelError(f"config.json does not describe this transformer: {error}") from error
        return model.to("meta")


class _Empty(TorchFunctionMode):
    """Tensors that are not filled get no storage.

    Not all, as under `torch.device("meta")`: torch computes without storage in Python, by what its compiler
    is made of, whose import takes a second.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **{**kwargs, "device": "meta"} if func is torch.empty else kwargs)


def open_wan(
    model_class: type[ModelT],
    folder: Path,
    tensors: Tensors | None = None,
    place: object = None,
    adapters: Sequence[Lora] = (),
) -> Checkpoint[ModelT]:
    """The `Checkpoint` of a Wan transformer whose config.json is in `folder`, or a `MissingModelError`.

    Args:
        tensors: Instead of those in the folder, from `place`.
    """
    settings = {name: value for name, value in read_layout(folder).items() if not name.startswith("_")}
    found = read_folder(folder) if tensors is None else tensors
    return Checkpoint(lambda: model_class(**settings), found, place or folder, adapters)


def convert_checkpoint(
    model_class: type[nn.Module],
    source: Path,
    config: Mapping[str, object],
    folder: Path,
    *,
    generators: Sequence[str] = WEIGHTS_KEYS["auto"],
    adapters: Sequence[Lora] = (),
    part_bytes: int = _PART_BYTES,
) -> None:
    """Write the generator of the published `source` to `folder`: `read_published`, `Checkpoint.write`."""
    tensors = read_published(source, generators)
    found = Checkpoint(lambda: model_class(**config), tensors, source, adapters)
    found.write(folder, config, part_bytes=part_bytes)


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Tensors of the files that an index lists, else of all, mapped; `MissingModelError` if one is broken."""
    index = folder / INDEX_FILE
    try:
        files = sorted(folder.glob("*.safetensors"))
        if index.exists():
            names = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values()
            files = [folder / name for name in sorted(set(names))]
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise MissingModelError(f"cannot read {index}: {error}") from error
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors.update(read_file(path))
    return tensors


def read_published(
    path: Path, generators: Sequence[str] = WEIGHTS_KEYS["auto"], *, what: str = "generator"
) -> dict[str, Tensor]:
    """The generator's tensors of a published checkpoint, as named there, mapped; else a `MissingModelError`.

    Args:
        path: `.safetensors`, or a `.pt` of tensors; a pickle that holds anything else is not executed.
        generators: Keys of the pickle that hold it, the first that is there; a bare state dict is taken too,
            but for averaged weights, which only a key tells from others.
        what: It is called in messages.
    """
    needs_key = generators == WEIGHTS_KEYS["ema"]
    if path.suffix == ".safetensors":
        if needs_key:
            raise MissingModelError(
                f"{path} does not say which weights it has", hint="set model.weights_key=auto"
            )
        return read_file(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise MissingModelError(f"{path} contains more than tensors and was not loaded") from error
    except (OSError, RuntimeError) as error:
        if path.is_file() and not is_zipfile(path):
            # torch tells how it was to be written, or that its archive reader is at fault.
            raise MissingModelError(
                f"cannot read {path}: it is not a whole checkpoint",
                hint="copy it again, or use a .safetensors file or a .pt written by torch 1.6 or later",
            ) from error
        raise MissingModelError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise MissingModelError(f"{path} has no {what}")
    keyed = next((found[key] for key in generators if isinstance(found.get(key), dict)), None)
    if keyed is None and needs_key:
        raise MissingModelError(
            f"{path} has no averaged weights ({generators[0]})",
            hint="set model.weights_key=raw or auto; its keys are " + ", ".join(map(str, list(found)[:4])),
        )
    found = found if keyed is None else keyed
    if not found or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise MissingModelError(f"{path} has no {what}", hint="its keys are " + ", ".join(map(str, found)))
    return dict(found)


def model_name(name: str, known: Tensors) -> str:
    """The name in a model of a published tensor; one that it does not have keeps its own."""
    if name in known:
        return name
    bare = _WRAPPERS.sub("", name).removeprefix("model.")
    return bare if bare in known else diffusers_name(bare) or bare


def diffusers_name(name: str) -> str | None:
    """diffusers' name of a tensor under its original name in Wan; `None` if Wan has no such tensor."""
    table, prefix = _TOP_LEVEL, ""
    if match := re.fullmatch(r"(blocks\.\d+\.)(.+)", name):
        table, prefix, name = _IN_BLOCK, match[1], match[2]
    if name in table:
        return prefix + table[name]
    stem, _, leaf = name.rpartition(".")
    return f"{prefix}{table[stem]}.{leaf}" if stem in table else None


def dtype_of(model: nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    """Dtype of the tensor `name` of `model` in `dtype`: small ones that decide much stay float32."""
    kept: Any = model._keep_in_fp32_modules
    return dtype if set(kept).isdisjoint(name.split(".")) else torch.float32


def is_block_matrix(model: nn.Module, name: str) -> bool:
    """Whether the tensor `name` belongs to a matrix of a block, not to its norms or modulation."""
    module = name.rpartition(".")[0]
    is_matrix = name.startswith("blocks.") and isinstance(model.get_submodule(module), nn.Linear)
    return is_matrix and "adaLN_modulation" not in name


def put_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter `name` of `model`, or of it the part that this process holds."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    empty: Any = module.get_parameter(leaf)
    if hasattr(empty, "device_mesh"):
        # It is a second's import.
        from torch.distributed.tensor import distribute_tensor

        tensor = distribute_tensor(tensor, empty.device_mesh, empty.placements, src_data_rank=None)
    module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped; `MissingModelError` if it is missing or broken."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MissingModelError(f"cannot read {path}: {error}") from error


def check_tensors(found: Tensors, expected: Tensors, place: object) -> None:
    """Refuse tensors that are not those of a model: a `MissingModelError` names the first that is missing,
    unknown or of another shape."""
    missing = [name for name in expected if name not in found]
    if missing:
        others = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise MissingModelError(f"tensor {missing[0]}{others} missing from {place}")
    for name, tensor in found.items():
        if name not in expected:
            raise MissingModelError(f"tensor {name} in {place} is not part of the model")
        shape, needed = tuple(tensor.shape), tuple(expected[name].shape)
        if shape != needed:
            raise MissingModelError(f"tensor {name} in {place} has shape {shape}, the model needs {needed}")


def _cut(
    tensors: Tensors, dtype_of: Callable[[str], torch.dtype], part_bytes: int
) -> Iterator[dict[str, torch.dtype]]:
    """Names of the tensors of each part, in their order, with the dtypes that they are written in."""
    part: dict[str, torch.dtype] = {}
    held = 0
    for name, tensor in tensors.items():
        dtype = dtype_of(name)
        size = tensor.numel() * dtype.itemsize
        if part and held + size > part_bytes:
            yield part
            part, held = {}, 0
        part[name] = dtype
        held += size
    yield part
