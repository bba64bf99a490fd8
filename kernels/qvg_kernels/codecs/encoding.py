"""Encode spans by kernels: every scheme's tensors, filled head by head without waiting for the device.

The codecs in `qvg_kernels.codecs` are the torch reference. Invariant: a head's bytes are a function of its
values, the spec and the seed; nothing here waits on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import cache

import torch
from torch import Tensor

from qvg_kernels.codec import FiniteCheck
from qvg_kernels.codecs import residual_blocks as encode_blocks
from qvg_kernels.codecs.fitted import codebook as encode_table
from qvg_kernels.codecs.fitted import residuals as encode_residuals
from qvg_kernels.quant import kmeans_kernels as kmeans
from qvg_kernels.quant import scales as encode_scales
from qvg_kernels.quant.channels import measure
from qvg_kernels.quant.hadamard import phase_of_seed
from qvg_kernels.quant.kmeans import random_starts, spread_starts
from qvg_kernels.quant.points import Points
from qvg_kernels.runtime.warmup import rehearse
from qvg_kernels.spec import GRID_BITS, AsymSpec, FittedSpec, QvgSpec

GROUP_BYTES = 128 * 2**20
"""Of values that are encoded at a time: the errors that a refit needs take as much again."""


Packed = tuple[dict[str, Tensor], FiniteCheck]
"""The tensors that a codec stores, and whether they are of any use."""


def encode_fitted(span: Tensor, spec: FittedSpec, seed: int) -> Packed:
    """Pack `[B, H, S, D]` values with the scheme "fitted"."""
    return _encode(_encode_all_fitted, span, spec, seed)


def encode_qvg(span: Tensor, spec: QvgSpec, seed: int) -> Packed:
    """Pack `[B, H, S, D]` values with the scheme "qvg"."""
    return _encode(_encode_all_qvg, span, spec, seed)


def encode_asym(span: Tensor, spec: AsymSpec, seed: int) -> Packed:
    """Pack `[B, H, S, D]` values with the scheme "asym"."""
    return _encode(_encode_all_asym, span, spec, seed)


def _encode(scheme: Callable[..., Packed], span: Tensor, spec: Hashable, seed: int) -> Packed:
    """`scheme(span, spec, seed)`, rehearsed the first time that a span of this shape is packed so."""
    key = (spec, span.shape, span.stride(), span.dtype, span.device)
    rehearse(span.device, key, lambda: scheme(span, spec, seed))
    return scheme(span, spec, seed)


def _encode_all_fitted(span: Tensor, spec: FittedSpec, seed: int) -> Packed:
    batch, heads, tokens, head_dim = span.shape
    count, phase = spec.centroids(tokens), phase_of_seed(seed)
    code_rows, code_bytes = _code_shape(spec, tokens, head_dim)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(batch, heads, *shape, dtype=dtype, device=span.device)

    tensors = {
        "codes": empty(code_rows, code_bytes, dtype=torch.uint8),
        "scales": empty(tokens, dtype=torch.uint8),
        "weights": empty(head_dim, dtype=torch.uint8),
    }
    if count > 0:
        tensors["ids"] = empty(tokens, dtype=torch.uint8)
        tensors["table"] = empty(count, head_dim, dtype=torch.int8)
        tensors["steps"] = empty(head_dim, dtype=torch.uint8)
    tensors["offset"] = empty(head_dim, dtype=torch.float32)
    tensors["units"] = torch.zeros(batch, heads, 3, dtype=torch.float32, device=span.device)
    tensors["phase"] = torch.full((batch, heads, 1), phase, dtype=torch.uint8, device=span.device)
    found = empty(3, dtype=torch.int32)
    for part in _groups(span):
        _encode_fitted(span[part], {n: t[part] for n, t in tensors.items()}, found[part], spec, phase)
    return tensors, FiniteCheck(head_dim, found)


def _encode_fitted(
    span: Tensor, target: dict[str, Tensor], found: Tensor, spec: FittedSpec, phase: int
) -> None:
    """Fill the tensors of some heads, all contiguous, from their `[H, S, D]` values."""
    points = Points(span)
    channels = measure(points, target["weights"], target["units"], found)
    points = Points(span, channels.offset, channels.inverse)
    ids, table, steps, units = target.get("ids"), target.get("table"), target.get("steps"), target["units"]
    count = 0 if table is None else table.shape[1]
    decoded = None
    if ids is not None and table is not None and steps is not None:
        centroids = kmeans.kmeans(points, _spread(points.tokens, count, span.device), spec.iterations, ids)
        decoded = encode_table.round_table(centroids, table, steps, units)
    scales, largest, errors = encode_residuals.round_residuals(
        points, ids, table, decoded, spec.grid, phase, spec.unbiased, target["codes"]
    )
    encode_scales.round_scales(scales, largest, target["scales"], units, 0)
    missed = kmeans.cluster_sums(errors, ids, max(count, 1))
    encode_table.refit(points, missed, table, steps, target["weights"], units, target["offset"])


def _encode_all_qvg(span: Tensor, spec: QvgSpec, seed: int) -> Packed:
    batch, heads, tokens, head_dim = span.shape
    count, size = min(spec.num_centroids, tokens), min(spec.block_size, head_dim)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(batch, heads, *shape, dtype=dtype, device=span.device)

    tensors = {
        "codes": empty(tokens, head_dim * spec.bits // 8, dtype=torch.uint8),
        "scales": empty(tokens, head_dim // size, dtype=torch.uint8),
        "ids": empty(spec.stages, tokens, dtype=torch.uint8),
        "centroids": empty(spec.stages, count, head_dim, dtype=torch.bfloat16),
    }
    starts = _random(tokens, count, spec.stages, seed, span.device)
    found = empty(3, dtype=torch.int32)
    for part in _groups(span):
        points, target = Points(span[part]), {name: tensor[part] for name, tensor in tensors.items()}
        measure(points, None, None, found[part])
        for stage in range(spec.stages):
            ids, rounded = _cluster(points, starts[stage], spec.iterations)
            target["ids"][:, stage] = ids
            target["centroids"][:, stage] = rounded
            if stage + 1 < spec.stages:
                points = encode_blocks.subtract(points, rounded, ids)
        encode_blocks.round_symmetric(
            points, rounded, ids, spec.bits, size, target["scales"], target["codes"]
        )
    return tensors, FiniteCheck(head_dim, found)


def _encode_all_asym(span: Tensor, spec: AsymSpec, seed: int) -> Packed:
    batch, heads, tokens, head_dim = span.shape
    count, size = min(spec.num_centroids, tokens), min(spec.block_size, head_dim)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(batch, heads, *shape, dtype=dtype, device=span.device)

    tensors = {
        "codes": empty(tokens, head_dim * spec.bits // 8, dtype=torch.uint8),
        "steps": empty(tokens, head_dim // size, dtype=torch.uint8),
        "lows": empty(tokens, head_dim // size, dtype=torch.uint8),
        "ids": empty(tokens, dtype=torch.uint8),
        "centroids": empty(count, head_dim, dtype=torch.bfloat16),
        "units": empty(2, dtype=torch.float32),
    }
    starts = _random(tokens, count, 1, seed, span.device)
    found = empty(3, dtype=torch.int32)
    for part in _groups(span):
        points, target = Points(span[part]), {name: tensor[part] for name, tensor in tensors.items()}
        measure(points, None, None, found[part])
        ids, rounded = _cluster(points, starts[0], spec.iterations)
        target["ids"].copy_(ids)
        target["centroids"].copy_(rounded)
        lows, steps, *largest = encode_blocks.measure_blocks(points, rounded, ids, spec.bits, size)
        encode_scales.round_scales(steps, largest[1], target["steps"], target["units"], 0)
        encode_scales.round_scales(lows, largest[0], target["lows"], target["units"], 1)
        encode_blocks.round_asymmetric(
            points, rounded, ids, spec.bits, size,
            target["lows"], target["steps"], target["units"], target["codes"],
        )  # fmt: skip
    return tensors, FiniteCheck(head_dim, found)


def _cluster(points: Points, starts: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Ids `[H, S]` uint8 and centroids `[H, K, D]` bf16 of k-means from `starts`."""
    ids = points.empty(points.tokens, dtype=torch.uint8)
    centroids = kmeans.kmeans(points, starts, iterations, ids)
    return ids, centroids.values[:, : centroids.count].to(torch.bfloat16).contiguous()


def _random(tokens: int, count: int, stages: int, seed: int, device: torch.device) -> Tensor:
    """`[stages, count]` int32 token numbers that k-means starts from, drawn as the reference draws them."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.stack([random_starts(tokens, count, generator) for _ in range(stages)]).int()
    # A copy from pinned memory does not wait for the GPU's queue.
    return starts.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else starts


def _code_shape(spec: FittedSpec, tokens: int, head_dim: int) -> tuple[int, int]:
    """Rows and bytes of a head's codes."""
    if spec.grid == "trit":
        return -(-tokens // 5), head_dim
    return tokens, head_dim * GRID_BITS[spec.grid] // 8


@cache
def _spread(tokens: int, count: int, device: torch.device) -> Tensor:
    """`[count]` int32, the tokens that k-means starts from."""
    return spread_starts(tokens, count, device).int()


def _groups(span: Tensor) -> Iterator[tuple[int, slice]]:
    """Heads to encode at a time: indices into the first two axes."""
    batch, heads, tokens, head_dim = span.shape
    size = max(1, GROUP_BYTES // (tokens * head_dim * span.element_size()))
    for row in range(batch):
        for first in range(0, heads, size):
            yield row, slice(first, first + size)
