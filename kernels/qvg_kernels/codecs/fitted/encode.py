"""Blocks of the scheme "fitted" packed by kernels: `FittedCodec.encode_head` is the torch reference.

The int8 codebook of a head's centroids is made before the residuals are rounded and refitted after: what
rounding leaves of each cluster on average moves into its centroid, and what the codebook's own rounding then
leaves of each channel into its offset.
"""

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.codec import FiniteCheck, Shaper
from qvg_kernels.codecs.encoding import Packed, encode_heads
from qvg_kernels.codecs.fitted.residuals import TINY, round_residuals
from qvg_kernels.codecs.fitted.spec import FittedSpec
from qvg_kernels.quant import numbers
from qvg_kernels.quant.hadamard import phase_of_seed
from qvg_kernels.quant.kmeans import spread_starts
from qvg_kernels.quant.kmeans_kernels import add_splits, cluster_sums, kmeans
from qvg_kernels.quant.numbers import e4m3_bits, e4m3_value, power_of_two, round_half_even, unit_exponent
from qvg_kernels.quant.points import Points, measure, round_scales
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.replay import replay
from qvg_kernels.runtime.warmup import kernel

TABLE_TOP = tl.constexpr(116)
"""`reference.TABLE_TOP`."""
FINE = tl.constexpr(tl.float32 if triton.knobs.runtime.interpret else tl.float16)
"""What is multiplied by a matrix: float16 has the 11 bits of tf32, at twice its speed."""


def encode(block: Tensor, spec: FittedSpec, seed: int, shaper: Shaper | None) -> Packed:
    """Pack `[B, H, S, D]` values, their errors shaped if that is given."""
    _, _, tokens, head_dim = block.shape
    count = spec.centroids(tokens)
    codebook = {
        "ids": (torch.uint8, (tokens,)),
        "table": (torch.int8, (count, head_dim)),
        "steps": (torch.uint8, (head_dim,)),
    }
    shapes = {
        "codes": (torch.uint8, spec.code_shape(tokens, head_dim)),
        "scales": (torch.uint8, (tokens,)),
        "weights": (torch.uint8, (head_dim,)),
        **(codebook if count else {}),
        "offset": (torch.float32, (head_dim,)),
        "units": (torch.float32, (3,)),
        "phase": (torch.uint8, (1,)),
    }

    starts = _spread(tokens, count, block.device) if count else None

    def pack(inputs: Sequence[Tensor]) -> list[Tensor]:
        values, phase, *matrices = inputs

        def fill(points: Points, target: dict[str, Tensor], found: Tensor) -> None:
            target["phase"].copy_(phase)
            target["units"].zero_()
            _encode_heads(points, target, found, spec, starts)

        given = dict(zip(("matrix", "inverse"), matrices, strict=False))
        tensors, check = encode_heads(values, spec, shapes, fill, given)
        return [*tensors.values(), check.found]

    # All that a block has of its seed.
    phase = torch.full((1,), phase_of_seed(seed), dtype=torch.uint8, device=block.device)
    inputs = [block, phase]
    if shaper is not None and shaper.inverse is not None:
        inputs += [shaper.matrix, shaper.inverse]
    *tensors, found = replay(spec, pack, inputs)
    return dict(zip(shapes, tensors, strict=True)), FiniteCheck(head_dim, found)


@cache
def _spread(tokens: int, count: int, device: torch.device) -> Tensor:
    """`[count]` int32, the tokens that k-means starts from."""
    return spread_starts(tokens, count, device).int()


def _encode_heads(
    values: Points, target: dict[str, Tensor], found: Tensor, spec: FittedSpec, starts: Tensor | None
) -> None:
    tokens, head_dim, units, weights = values.tokens, values.head_dim, target["units"], target["weights"]
    measured = points = measure(values, found, weights, units)
    matrix, inverse = target.get("matrix"), target.get("inverse")
    if inverse is not None:
        weights = None
        points = Points(values.empty(tokens, head_dim, dtype=numbers.OPERAND_DTYPE))
        _transform_kernel[(triton.cdiv(tokens, 64), values.heads)](
            values.block, *values.strides, measured.offset, inverse, points.block, tokens, head_dim, 64, 64,
            num_warps=4,
        )  # fmt: skip
    ids = table = steps = decoded = None
    count = 0 if starts is None else len(starts)
    if starts is not None:
        ids, table, steps = target["ids"], target["table"], target["steps"]
        centroids = kmeans(points, starts, spec.iterations, ids)
        decoded, num_rows = points.empty(head_dim), centroids.shape[1]
        _table_kernel[(1, points.heads)](
            centroids, table, steps, units, decoded, count, num_rows, head_dim, min(num_rows, 64),
            num_warps=8,
        )  # fmt: skip
    scales, largest, errors = round_residuals(
        points, ids, table, decoded, spec, target["phase"], target["codes"]
    )
    round_scales(scales, largest, target["scales"], units, 0)
    # Without a table all tokens are in one cluster.
    sums, sizes = cluster_sums(Points(errors), ids, max(count, 1))
    splits, num_rows = sizes.shape[1:]
    tiles = num_rows // launch.MEAN_ROWS
    rests = points.empty(tiles, head_dim)
    _refit_kernel[(tiles, points.heads)](
        sums, sizes, table, steps, units, rests, count, splits, num_rows, head_dim, launch.MEAN_ROWS,
        num_warps=4,
    )  # fmt: skip
    moving = matrix if spec.shaping == "key" else inverse
    _offset_kernel[(1, points.heads)](
        rests, measured.offset, weights, units, moving, target["offset"], tiles, tokens,
        spec.shaping == "key", head_dim, num_warps=4,
    )  # fmt: skip


@kernel(do_not_specialize=["num_tokens"])
def _transform_kernel(
    block, head_stride, token_stride, offset, inverse, target, num_tokens,
    HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """TILE_S tokens of a head without their mean, times the inverse of its matrix, which is symmetric.

    Args:
        inverse: `[H, HEAD_DIM, HEAD_DIM]` float16.
    """
    head = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, HEAD_DIM)
    tokens = tl.program_id(0) * TILE_S + tl.arange(0, TILE_S)
    is_token = (tokens < num_tokens)[:, None]
    moved = tl.zeros([TILE_S, HEAD_DIM], tl.float32)
    for first in tl.range(0, HEAD_DIM, CHUNK, num_stages=1):
        some = first + tl.arange(0, CHUNK)
        at = block + head * head_stride + tokens[:, None].to(tl.int64) * token_stride + some[None, :]
        # [TILE_S, CHUNK], then [CHUNK, HEAD_DIM].
        values = tl.load(at, mask=is_token, other=0.0).to(tl.float32)
        values -= tl.load(offset + head * HEAD_DIM + some)[None, :]
        rows = tl.load(inverse + (head * HEAD_DIM + some)[:, None] * HEAD_DIM + channels[None, :])
        # What float16 cannot hold would be infinite, and spoil the block.
        values = tl.clamp(values, -65504.0, 65504.0)
        moved = tl.dot(values.to(FINE), rows.to(FINE), moved)
    at = target + (head * num_tokens + tokens)[:, None] * HEAD_DIM + channels[None, :]
    tl.store(at, moved.to(target.dtype.element_ty), mask=is_token)


@triton.jit
def _in_steps(values, step):
    """Float32 integers: values in steps, to nearest even, at most 127 either way."""
    return tl.clamp(round_half_even(tl.clamp(values / tl.maximum(step, TINY), -128.0, 128.0)), -127.0, 127.0)


@triton.jit
def _table_steps(steps, units, head, HEAD_DIM: tl.constexpr):
    """`[HEAD_DIM]` float32 steps of a head's table."""
    bits = tl.load(steps + head * HEAD_DIM + tl.arange(0, HEAD_DIM))
    return e4m3_value(bits) * tl.load(units + head * 3 + 2)


@kernel(do_not_specialize=["count"])
def _table_kernel(
    centroids, table, steps, units, decoded, count, num_rows, HEAD_DIM: tl.constexpr, TILE_K: tl.constexpr
):  # fmt: skip
    """One head's steps, as e4m3 bits and as they are decoded, and its table `[H, K, D]` of rounded centroids.

    Args:
        units: `[H, 3]`; the third receives the unit of the steps.
    """
    head = tl.program_id(1)
    channels = tl.arange(0, HEAD_DIM)
    largest = tl.zeros([HEAD_DIM], tl.float32)
    for first in range(0, num_rows, TILE_K):
        rows = first + tl.arange(0, TILE_K)
        # [TILE_K, HEAD_DIM]
        values = tl.load(centroids + (head * num_rows + rows)[:, None] * HEAD_DIM + channels[None, :])
        largest = tl.maximum(largest, tl.max(tl.abs(values), 0))
    step = largest / TABLE_TOP
    exponent = unit_exponent(tl.max(step, 0))
    bits = e4m3_bits(step * power_of_two(-exponent))
    step = e4m3_value(bits) * power_of_two(exponent)
    tl.store(steps + head * HEAD_DIM + channels, bits)
    tl.store(units + head * 3 + 2, power_of_two(exponent))
    tl.store(decoded + head * HEAD_DIM + channels, step)
    for first in range(0, num_rows, TILE_K):
        rows = first + tl.arange(0, TILE_K)
        # [TILE_K, HEAD_DIM]
        values = tl.load(centroids + (head * num_rows + rows)[:, None] * HEAD_DIM + channels[None, :])
        at = (head * count + rows)[:, None] * HEAD_DIM + channels[None, :]
        tl.store(table + at, _in_steps(values, step[None, :]).to(tl.int8), mask=(rows < count)[:, None])


@kernel(do_not_specialize=["count", "splits"])
def _refit_kernel(
    sums, sizes, table, steps, units, rests, count, splits, num_rows,
    HEAD_DIM: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """Move TILE_K entries of the table by the mean error of their tokens; what is left goes to `rests`."""
    head = tl.program_id(1)
    rows = tl.program_id(0) * TILE_K + tl.arange(0, TILE_K)
    channels = tl.arange(0, HEAD_DIM)
    rest, size = add_splits(sums, sizes, rows, splits, num_rows, HEAD_DIM, TILE_K)
    if table is not None:
        step = _table_steps(steps, units, head, HEAD_DIM)[None, :]
        at = (head * count + rows)[:, None] * HEAD_DIM + channels[None, :]
        is_entry = (rows < count)[:, None]
        # [TILE_K, HEAD_DIM]
        before = tl.load(table + at, mask=is_entry, other=0).to(tl.float32)
        after = _in_steps(step * before + rest / tl.maximum(size, 1.0)[:, None], step)
        after = tl.where((size > 0)[:, None], after, before)
        tl.store(table + at, after.to(tl.int8), mask=is_entry)
        rest += size[:, None] * (step * (before - after))
    tl.store(rests + (head * tl.num_programs(0) + tl.program_id(0)) * HEAD_DIM + channels, tl.sum(rest, 0))


@kernel(do_not_specialize=["num_tiles", "num_tokens"])
def _offset_kernel(
    rests, means, weights, units, matrix, offset, num_tiles, num_tokens,
    IS_KEY: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """A head's means, moved by the mean error of each channel.

    Args:
        rests: `[H, num_tiles, HEAD_DIM]`, whose sums over tiles are what all tokens miss; spoilt.
        matrix: `[H, HEAD_DIM, HEAD_DIM]` by which errors are shaped if there are no weights: keys have their
            offset outside of it, and values inside, where its inverse brings their means.
    """
    head = tl.program_id(1)
    channels = tl.arange(0, HEAD_DIM)
    at = head * HEAD_DIM + channels
    rests += head * num_tiles * HEAD_DIM
    mean, missed = tl.load(means + at), tl.zeros([HEAD_DIM], tl.float32)
    for tile in range(num_tiles):
        missed += tl.load(rests + tile * HEAD_DIM + channels)
    missed /= num_tokens
    if matrix is None:
        weight = e4m3_value(tl.load(weights + at)) * tl.load(units + head * 3 + 1)
        tl.store(offset + at, mean + weight * missed)
    else:
        moving = missed if IS_KEY else mean
        if not IS_KEY:
            tl.debug_barrier()
            tl.store(rests + channels, missed)
            tl.debug_barrier()
        for first in range(0, HEAD_DIM, 64):
            some = first + tl.arange(0, 64)
            rows = head * HEAD_DIM + some
            still = tl.load(means + rows) if IS_KEY else tl.load(rests + some)
            # [64, HEAD_DIM]
            part = tl.load(matrix + rows[:, None] * HEAD_DIM + channels[None, :]).to(tl.float32)
            tl.store(offset + rows, still + tl.sum(part * moving[None, :], 1))
