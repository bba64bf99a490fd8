"""The history as tensors with names, so that a run can save it and hold the same bytes again.

Invariants: a block is never changed, so it is saved once; what is restored has the bytes, the order and the
account of what was held.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import Entry, KVCache, LayerCache
from qvg_cli.cache.shaping import Matrices
from qvg_cli.planning.cache_plan import Block
from qvg_kernels.codec import Codec, PackedTensor

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
_SIDES = ("key", "value")

Versions = Mapping[int, Matrices]
"""The matrices that shape one layer's errors, by version."""


def is_kept(cache: KVCache) -> bool:
    """Whether the history is saved: packed, and with all its heads; else it is computed again.

    So is one whose later blocks are packed by what earlier queries asked for.
    """
    codecs = [layer.packed for layer in cache.layers]
    is_packed = all(pair.key.spec.packs and pair.value.spec.packs for pair in codecs)
    return cache.is_whole and is_packed and not any(pair.key.spec.weighs_queries for pair in codecs)


def matrix_tensors(cache: KVCache, held: Sequence[Block]) -> dict[str, Tensor]:
    """The matrices that shape errors of all layers, the newest and those of the blocks `held`, by name."""
    wanted = {block.version for block in held if block.is_packed}
    return {
        f"{version}/{layer.index}/{side}": matrix
        for layer in cache.layers
        for version, matrices in layer.shaping.versions.items()
        if version in wanted or version == max(layer.shaping.versions)
        for side, matrix in zip(_SIDES, matrices, strict=True)
        if matrix is not None
    }


def read_matrices(tensors: Mapping[str, Tensor], cache: KVCache, device: torch.device) -> list[Versions]:
    """By layer and version what `matrix_tensors` gave; `ValueError` if not of `cache`."""
    found: list[Versions] = []
    for layer in cache.layers:
        codecs = layer.packed.key, layer.packed.value
        sides = [
            {
                int(name.split("/")[0]): tensor.to(device)
                for name, tensor in tensors.items()
                if name.endswith(f"/{layer.index}/{side}")
            }
            for side in _SIDES
        ]
        versions = set().union(*sides)
        if any(
            set(each) != (versions if codec.spec.is_shaped else set())
            for each, codec in zip(sides, codecs, strict=True)
        ):
            raise ValueError(f"the matrices of layer {layer.index} are not whole")
        if not versions and layer.shaping.is_learning:
            raise ValueError("the matrices that shape its errors are missing")
        found.append({version: (sides[0].get(version), sides[1].get(version)) for version in versions})
    return found


def block_tensors(
    cache: KVCache, wanted: Sequence[Block]
) -> tuple[dict[str, Tensor], tuple[dict[str, Any], ...]]:
    """Tensors of the `wanted` blocks in all layers, where they are, and what JSON can say of each block."""
    tensors: dict[str, Tensor] = {}
    about = []
    for number, block in enumerate(wanted):
        layers = []
        for layer in cache.layers:
            entry = layer.entries[block]
            sides = {}
            for side in _SIDES:
                packed: PackedTensor = getattr(entry, side)
                for part, tensor in packed.tensors.items():
                    tensors[f"{number}/{layer.index}/{side}/{part}"] = tensor.contiguous()
                sides[side] = {
                    "shape": list(packed.shape),
                    "dtype": str(packed.dtype),
                    "kinds": dict(packed.kinds),
                }
            layers.append(sides)
        stored = {"frames": list(block.frames), "is_packed": block.is_packed, "version": block.version}
        about.append({**stored, "layers": layers})
    return tensors, tuple(about)


def read_blocks(
    tensors: Mapping[str, Tensor],
    about: Sequence[Any],
    chunk: int,
    cache: KVCache,
    versions: Sequence[Versions],
    device: torch.device,
) -> dict[Block, list[Entry]]:
    """Entries by block, one a layer, from what `block_tensors` gave; `ValueError` if not of `cache`."""
    found: dict[Block, list[Entry]] = {}
    try:
        for number, described in enumerate(about):
            version = described.get("version", 0)
            block = Block(tuple(described["frames"]), described["is_packed"], chunk, version)
            found[block] = [
                _build(layer, block, sides, f"{number}/{layer.index}", tensors, held, device)
                for layer, sides, held in zip(cache.layers, described["layers"], versions, strict=True)
            ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return found


def _build(
    layer: LayerCache,
    block: Block,
    sides: Mapping[str, Any],
    prefix: str,
    tensors: Mapping[str, Tensor],
    versions: Versions,
    device: torch.device,
) -> Entry:
    codecs = layer.packed if block.is_packed else layer.unpacked
    num_tokens = len(block.frames) * layer.tokens_per_frame
    matrices: Matrices = (None, None)
    if block.is_packed:
        # Codecs without matrices have no versions, and matrices that came with the model neither.
        batch = sides["key"]["shape"][0]
        matrices = layer.shaping.shipped_on(device, batch) or versions.get(block.version, matrices)
    key, value = (
        replace(_build_side(sides[side], f"{prefix}/{side}", tensors, num_tokens, device), matrix=matrix)
        for side, matrix in zip(_SIDES, matrices, strict=True)
    )
    _check_readable(codecs.key, key)
    _check_readable(codecs.value, value)
    return Entry(block, codecs, key, value)


def _build_side(
    side: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor], num_tokens: int, device: torch.device
) -> PackedTensor:
    batch, heads, tokens, head_dim = side["shape"]
    if tokens != num_tokens:
        raise ValueError(f"{prefix} has {tokens} tokens, its frames have {num_tokens}")
    return PackedTensor(
        (batch, heads, tokens, head_dim),
        _DTYPES[side["dtype"]],
        {part: tensors[f"{prefix}/{part}"].to(device) for part in side["kinds"]},
        side["kinds"],
    )


def _check_readable(codec: Codec, packed: PackedTensor) -> None:
    """Decode the first token of the first head: what another codec wrote is not found out in mid-video."""
    try:
        codec.decode(packed, heads=slice(0, 1), tokens=slice(0, 1))
    except (RuntimeError, IndexError, KeyError) as error:
        raise ValueError(f"the codec cannot read it: {error}") from error
