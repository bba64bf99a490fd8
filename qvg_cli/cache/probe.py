"""What packing does to attention, measured while the exact keys are there.

The cache of a run keeps its keys as they are; beside it, caches of other presets are filled with the same
keys. In some chunks a few queries of the last denoising step are asked of all of them. Nothing of
the run changes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import Entry, KVCache, LayerCache, Rotation, Watcher
from qvg_cli.cache.prediction import chosen_heads, chosen_layers, draw_tokens, is_measured
from qvg_cli.config.schema import CacheConfig
from qvg_cli.planning.cache_plan import CacheStep
from qvg_cli.planning.chunks import ChunkPlan, Frames
from qvg_cli.planning.ledger import LayerLosses, total
from qvg_kernels.attention.losses import logit_losses
from qvg_kernels.rope.placement import Placement
from qvg_kernels.spec import Bf16Spec


@dataclass(frozen=True)
class _Asked:
    """What a layer was asked in its last call.

    Attributes:
        heads: That were looked at.
        query: `[B, h, Q, D]` of these heads, placed.
        own: `[B, h, Q]`, the logarithm of the summed exponentials of the chunk's own keys.
    """

    heads: slice
    query: Tensor
    own: Tensor
    reads: Frames
    rotation: Rotation


class Probe(Watcher):
    """Asks the same of the exact cache of a run and of packed ones, each empty and made by `keys_alone`."""

    def __init__(self, cache: KVCache, others: Mapping[str, KVCache], seed: int) -> None:
        self._cache = cache
        self._others = others
        self._seed = seed
        self._steps: dict[str, CacheStep] = {}
        self._chunk: ChunkPlan | None = None
        self._asked: dict[int, _Asked] = {}
        for layer in cache.layers:
            layer.watcher = self

    @property
    def is_learning(self) -> bool:
        """Whether what the other caches do depends on calls that are still to come."""
        return any(other.is_learning for other in self._others.values())

    @property
    def held_bytes(self) -> int:
        return sum(total(other.payload_bytes()) for other in self._others.values())

    def begin(self, chunk: ChunkPlan) -> None:
        self._steps = {name: other.begin(chunk) for name, other in self._others.items()}
        self._chunk, self._asked = chunk if is_measured(chunk) and chunk.reads else None, {}

    def see_call(
        self, layer: LayerCache, query: Tensor, key: Tensor, frames: Frames, reads: Frames, rotation: Rotation
    ) -> None:
        if self._chunk is None or frames != self._chunk.makes:
            return
        if layer.index not in chosen_layers(self._chunk, len(self._cache.layers)):
            return
        count, heads = query.shape[2], chosen_heads(self._chunk, query.shape[1])
        tokens = draw_tokens(self._seed, self._chunk.index, count, query.device)
        chosen = query[:, heads, tokens].float()
        placed = rotation.placement(frames).apply(key[:, heads], slice(0, count))
        own = _logits(chosen, placed).logsumexp(-1)
        self._asked[layer.index] = _Asked(heads, chosen, own, reads, rotation)

    def see_queries(self, layer: LayerCache, query: Tensor, placements: Sequence[Placement]) -> None:
        for other in self._others.values():
            shaping = other.layers[layer.index].shaping
            if shaping.is_learning:
                shaping.observe(query, placements)

    def follow(self, kind: Literal["prefill", "commit"]) -> None:
        """Fill the other caches with what a pass has just left in the run's."""
        for name, step in self._steps.items():
            commit = step.prefill if kind == "prefill" else step.commit
            if commit is None:
                continue
            for layer, other in zip(self._cache.layers, self._others[name].layers, strict=True):
                parts = [
                    entry.codecs.key.decode(entry.key)[:, :, tokens]
                    for entry, tokens in _places(layer, commit.frames)
                ]
                key = torch.cat(parts, dim=2)
                # Values are not asked for; a channel stands in for them.
                other.commit(key, key[..., :1], commit.frames, commit)
            self._others[name].settle(commit)

    def measure(self) -> dict[str, tuple[LayerLosses, ...]]:
        """What the last step of the chunk has lost in every layer, by preset; empty if it is not measured."""
        found = {
            name: {
                index: losses
                for index, asked in self._asked.items()
                if (losses := _losses(asked, self._cache.layers[index], other.layers[index])) is not None
            }
            for name, other in self._others.items()
        }
        self._chunk, self._asked = None, {}
        return {
            name: tuple(
                LayerLosses(index, *_rounded(values))
                for index, values in zip(layers, torch.stack(list(layers.values())).tolist(), strict=True)
            )
            for name, layers in found.items()
            if layers
        }


def keys_alone(config: CacheConfig) -> CacheConfig:
    """The settings of a cache that packs keys as `config` says, and no values."""
    values = {"v": Bf16Spec()}
    layers = {number: codecs.model_copy(update=values) for number, codecs in config.layers.items()}
    return config.model_copy(update={**values, "layers": layers})


def packs_keys(config: CacheConfig) -> bool:
    return config.k.packs or any(codecs.k.packs for codecs in config.layers.values())


def _losses(asked: _Asked, exact: LayerCache, packed: LayerCache) -> Tensor | None:
    """`[5]` means over heads in the order of `LogitLosses`; `None` where nothing is packed yet."""
    held = tuple(frame for frame in asked.reads if packed.entry_of[frame].block.is_packed)
    if not held:
        return None
    rest = tuple(frame for frame in asked.reads if frame not in held)
    own = asked.own
    if rest:
        own = torch.logaddexp(own, _history_logits(asked, exact, rest).logsumexp(-1))
    right, changed = (_history_logits(asked, layer, held) for layer in (exact, packed))
    return torch.stack(list(vars(logit_losses(right, changed, own)).values())).mean((1, 2))


def _history_logits(asked: _Asked, layer: LayerCache, frames: Frames) -> Tensor:
    """`[B, h, Q, S]` of the keys of `frames` as `layer` holds them."""
    parts = []
    for entry, tokens in _places(layer, frames):
        key = entry.codecs.key.decode(entry.key, heads=asked.heads)
        placed = asked.rotation.placement(entry.block.frames).apply(key, slice(0, key.shape[2]))
        parts.append(_logits(asked.query, placed[:, :, tokens]))
    return torch.cat(parts, dim=-1)


def _places(layer: LayerCache, frames: Frames) -> list[tuple[Entry, Tensor | slice]]:
    """The entries that `frames` are read from, in order, and which of their tokens those are."""
    places: list[tuple[Entry, Tensor | slice]] = []
    for entry, group in groupby(frames, key=layer.entry_of.__getitem__):
        wanted = tuple(group)
        if wanted == entry.block.frames:
            places.append((entry, slice(None)))
            continue
        first = torch.tensor([entry.block.frames.index(frame) for frame in wanted]) * layer.tokens_per_frame
        places.append((entry, (first.unsqueeze(-1) + torch.arange(layer.tokens_per_frame)).flatten()))
    return places


def _logits(query: Tensor, placed: Tensor) -> Tensor:
    return query @ placed.float().mT / math.sqrt(query.shape[-1])


def _rounded(values: list[float]) -> tuple[float, float, float, float, float]:
    squared_error, variance, *shares = values
    rms = math.sqrt(squared_error)
    db = 10 * math.log10(max(squared_error, 1e-30) / max(variance, 1e-30))
    shift, moved, mass = (round(share, 6) for share in shares)
    return round(rms, 6), round(db, 3), shift, moved, mass
