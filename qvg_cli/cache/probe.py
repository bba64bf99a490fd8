"""What packing does to attention, measured while the exact keys are there.

The cache of a run keeps its keys as they are; beside it, caches of other presets are filled with the same
keys. In some chunks a few queries of the last denoising step are asked of all of them. Nothing of
the run changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import Entry, KVCache, LayerCache, Rotation
from qvg_cli.config.schema import CacheConfig
from qvg_cli.planning.cache_plan import CacheStep
from qvg_cli.planning.chunks import ChunkPlan, Frames
from qvg_cli.planning.ledger import LayerLosses, total
from qvg_cli.randomness import derive_seed
from qvg_kernels.attention.losses import logit_losses
from qvg_kernels.spec import Bf16Spec

EVERY, FIRST = 4, 1
"""Every fourth chunk is measured, from the second on: the first that has a history."""
NUM_QUERIES = 16
"""Of every head: over 360 heads the mean token shift then has a deviation of 0.6 points."""


@dataclass(frozen=True)
class _Asked:
    """What a layer was asked in its last call.

    Attributes:
        query: `[B, H, Q, D]`, placed.
        own: `[B, H, Q]`, the logarithm of the summed exponentials of the chunk's own keys.
    """

    query: Tensor
    own: Tensor
    reads: Frames
    rotation: Rotation


class Probe:
    """Asks the same of an exact cache and of packed ones.

    Args:
        cache: Of the run.
        others: Empty caches by name, of `keys_alone` of what is measured.
        seed: Of the draws.
    """

    def __init__(self, cache: KVCache, others: Mapping[str, KVCache], seed: int) -> None:
        self._cache = cache
        self._others = others
        self._seed = seed
        self._steps: dict[str, CacheStep] = {}
        self._chunk: ChunkPlan | None = None
        self._tokens: Tensor | None = None
        self._asked: dict[int, _Asked] = {}
        for layer in cache.layers:
            layer.watcher = self

    @property
    def held_bytes(self) -> int:
        """Bytes of the caches that are only measured."""
        return sum(total(other.payload_bytes()) for other in self._others.values())

    def begin(self, chunk: ChunkPlan) -> None:
        """Drop what `chunk` evicts."""
        self._steps = {name: other.begin(chunk) for name, other in self._others.items()}
        is_measured = chunk.makes and chunk.reads and chunk.index % EVERY == FIRST
        self._chunk, self._tokens = (chunk if is_measured else None), None

    def __call__(
        self, layer: LayerCache, query: Tensor, key: Tensor, frames: Frames, reads: Frames, rotation: Rotation
    ) -> None:
        if self._chunk is None or frames != self._chunk.makes:
            return
        count = query.shape[2]
        if self._tokens is None:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "probe", self._chunk.index))
            self._tokens = torch.randperm(count, generator=generator)[:NUM_QUERIES].to(query.device)
        chosen = query[:, :, self._tokens].float()
        placed = rotation.placement(frames).apply(key, slice(0, count))
        self._asked[layer.index] = _Asked(chosen, _logits(chosen, placed).logsumexp(-1), reads, rotation)

    def observe(self, layer: LayerCache, query: Tensor, frames: Frames, *rotations: Rotation) -> None:
        """Let the other caches learn from queries that are not placed yet."""
        for other in self._others.values():
            other.layers[layer.index].observe(query, frames, *rotations)

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
    layers = {number: own.model_copy(update={"v": Bf16Spec()}) for number, own in config.layers.items()}
    return config.model_copy(update={"v": Bf16Spec(), "layers": layers})


def _losses(asked: _Asked, exact: LayerCache, packed: LayerCache) -> Tensor | None:
    """`[5]` means over heads in the order of `LogitLosses`; `None` where nothing is packed yet."""
    held = tuple(frame for frame in asked.reads if packed.entry_of[frame].block.is_packed)
    if not held:
        return None
    own = asked.own
    if rest := tuple(frame for frame in asked.reads if frame not in held):
        own = torch.logaddexp(own, _history_logits(asked, exact, rest).logsumexp(-1))
    lost = logit_losses(_history_logits(asked, exact, held), _history_logits(asked, packed, held), own)
    return torch.stack([values.mean() for values in vars(lost).values()])


def _history_logits(asked: _Asked, layer: LayerCache, frames: Frames) -> Tensor:
    """`[B, H, Q, S]` of the keys of `frames` as `layer` holds them."""
    parts = []
    for entry, tokens in _places(layer, frames):
        key = entry.codecs.key.decode(entry.key)
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
