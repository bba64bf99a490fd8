"""The history as tensors with names, so that a run can put it away and hold the same bytes again.

Invariants: an entry is never changed, so it is put away once; what is restored has the bytes, the order and
the account of what was held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import Entry, KVCache, LayerCache
from qvg_cli.cache.policy import Frames
from qvg_cli.plan import ChunkPlan
from qvg_kernels.codec import Codec, PackedTensor

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
_SIDES = ("key", "value")


@dataclass(frozen=True)
class HeldEntry:
    """What tells an entry from all others that every layer ever holds.

    Attributes:
        frames: Absolute ids, in the order of the tokens.
        is_packed: Whether it is a span, and not a chunk that waits for one.
    """

    frames: Frames
    is_packed: bool


def is_packing(cache: KVCache) -> bool:
    """Whether the history becomes smaller than the model's own keys and values."""
    codecs = cache.layers[0].packed
    return codecs.key.spec.packs and codecs.value.spec.packs


def held_entries(cache: KVCache, following: ChunkPlan | None) -> tuple[HeldEntry, ...]:
    """The entries that every layer holds, in order, without those that the `following` chunk drops first.

    Args:
        following: The next chunk; none after the last, which leaves nothing to be read.
    """
    if following is None:
        return ()
    gone = cache.gone.union(following.evicts)
    held = [
        tuple(_name(layer, entry) for entry in layer.entries if not gone.issuperset(entry.frames))
        for layer in cache.layers
    ]
    assert all(names == held[0] for names in held), "layers hold the same frames between chunks"
    return held[0]


def entry_tensors(
    cache: KVCache, wanted: Sequence[HeldEntry]
) -> tuple[dict[str, Tensor], tuple[dict[str, Any], ...]]:
    """Tensors of the `wanted` entries in all layers, on the CPU, and what JSON can say of each entry."""
    tensors: dict[str, Tensor] = {}
    about = []
    for number, name in enumerate(wanted):
        layers = []
        for layer in cache.layers:
            entry = next(entry for entry in layer.entries if _name(layer, entry) == name)
            sides = {}
            for side in _SIDES:
                packed: PackedTensor = getattr(entry, side)
                for part, tensor in packed.tensors.items():
                    tensors[f"{number}/{layer.index}/{side}/{part}"] = tensor.contiguous().cpu()
                sides[side] = {
                    "shape": list(packed.shape),
                    "dtype": str(packed.dtype),
                    "kinds": dict(packed.kinds),
                }
            layers.append(sides)
        about.append({"frames": list(name.frames), "is_packed": name.is_packed, "layers": layers})
    return tensors, tuple(about)


def read_entries(
    tensors: Mapping[str, Tensor], about: Sequence[Any], cache: KVCache, device: torch.device
) -> dict[HeldEntry, list[Entry]]:
    """Entries by what they are, one a layer, from what `entry_tensors` gave.

    Raises:
        ValueError: They do not belong to `cache`, or are not whole.
    """
    found: dict[HeldEntry, list[Entry]] = {}
    try:
        for number, described in enumerate(about):
            name = HeldEntry(tuple(described["frames"]), described["is_packed"])
            found[name] = [
                _build(layer, name, sides, f"{number}/{layer.index}", tensors, device)
                for layer, sides in zip(cache.layers, described["layers"], strict=True)
            ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return found


def _name(layer: LayerCache, entry: Entry) -> HeldEntry:
    return HeldEntry(entry.frames, entry.codecs is layer.packed)


def _build(
    layer: LayerCache,
    name: HeldEntry,
    sides: Mapping[str, Any],
    prefix: str,
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> Entry:
    codecs = layer.packed if name.is_packed else layer.unpacked
    num_tokens = len(name.frames) * layer.tokens_per_frame
    key, value = (
        _build_side(sides[side], f"{prefix}/{side}", tensors, num_tokens, device) for side in _SIDES
    )
    _check_readable(codecs.key, key)
    _check_readable(codecs.value, value)
    return Entry(name.frames, codecs, key, value)


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
