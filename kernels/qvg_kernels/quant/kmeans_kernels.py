"""K-means without sorting, racing additions or waiting: `kmeans` is the torch reference.

Tokens meet the centroids in products of bf16 values, so two centroids that are nearly equally near may swap;
the means are exact. A cluster's sum is a product with ones and zeros: a bf16 block is summed as it is, in
float32, and shifted and scaled afterwards.
"""

import triton
import triton.language as tl
from torch import Tensor

from qvg_kernels.quant import numbers
from qvg_kernels.quant.numbers import OPERAND
from qvg_kernels.quant.points import Points, centred, load_tokens
from qvg_kernels.runtime import launch
from qvg_kernels.runtime.warmup import kernel


@triton.jit
def _store_centroids(
    values, rows, count, num_rows, centroids, operand, bias, HEAD_DIM: tl.constexpr
):  # fmt: skip
    """Store `[TILE_K, HEAD_DIM]` centroids, and what `_assign_kernel` reads of them.

    Args:
        operand: `[H, R, D]`: receives the values as products take them.
        bias: `[H, R]`: receives minus half the squared norm of a row of `operand`, or minus infinity for rows
            beyond the last, which are never chosen.
    """
    row = tl.program_id(1) * num_rows + rows
    at = row[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
    is_centroid = rows < count
    values = tl.where(is_centroid[:, None], values, 0.0)
    rounded = values.to(OPERAND)
    wide = rounded.to(tl.float32)
    tl.store(centroids + at, values)
    tl.store(operand + at, rounded)
    tl.store(bias + row, tl.where(is_centroid, -0.5 * tl.sum(wide * wide, 1), float("-inf")))


@kernel(do_not_specialize=["count"])
def _start_kernel(
    block, head_stride, token_stride, offset, inverse, starts, centroids, operand, bias, count, num_rows,
    HEAD_DIM: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """The points at `starts` as centroids."""
    rows = tl.program_id(0) * TILE_K + tl.arange(0, TILE_K)
    is_centroid = rows < count
    tokens = tl.load(starts + rows, mask=is_centroid, other=0)
    # [TILE_S, HEAD_DIM]
    values = load_tokens(block, head_stride, token_stride, tokens, is_centroid, HEAD_DIM)
    values = centred(values, offset, inverse, HEAD_DIM)
    _store_centroids(values, rows, count, num_rows, centroids, operand, bias, HEAD_DIM)


@triton.jit
def _closeness(points, centroids, bias):
    """Minus half the squared distance of each point from each centroid, but for the point's own norm."""
    return tl.dot(points, centroids.T, input_precision="ieee") + bias[None, :]


@triton.jit
def _lowest(closeness, best, TILE_K: tl.constexpr):
    """The lowest column of each row that holds the row's best."""
    column = tl.arange(0, TILE_K)[None, :]
    lowest = tl.min(tl.where(closeness == best[:, None], column, TILE_K), 1)
    # A point that is not finite is near to none.
    return tl.minimum(lowest, TILE_K - 1)


@kernel(do_not_specialize=["num_tokens"])
def _assign_kernel(
    block, head_stride, token_stride, offset, inverse, operand, bias, ids, num_tokens, num_rows,
    HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr, TILE_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Number of each token's nearest centroid, the lowest of equals."""
    head = tl.program_id(1)
    tokens = tl.program_id(0) * TILE_S + tl.arange(0, TILE_S)
    is_token = tokens < num_tokens
    # [TILE_S, HEAD_DIM]
    values = load_tokens(block, head_stride, token_stride, tokens, is_token, HEAD_DIM)
    points = centred(values, offset, inverse, HEAD_DIM).to(OPERAND)
    channels = tl.arange(0, HEAD_DIM)
    best = tl.full([TILE_S], float("-inf"), tl.float32)
    start = tl.zeros([TILE_S], tl.int32)
    # Of each token only the tile that holds its best centroid so far: columns are searched once, at the end.
    kept = tl.zeros([TILE_S, TILE_K], tl.float32)
    for first in tl.range(0, num_rows, TILE_K, num_stages=STAGES):
        rows = head * num_rows + first + tl.arange(0, TILE_K)
        # [TILE_K, HEAD_DIM]
        centroids = tl.load(operand + rows[:, None] * HEAD_DIM + channels[None, :])
        closeness = _closeness(points, centroids, tl.load(bias + rows))
        closest = tl.max(closeness, 1)
        is_nearer = closest > best
        kept = tl.where(is_nearer[:, None], closeness, kept)
        start = tl.where(is_nearer, first, start)
        best = tl.maximum(closest, best)
    nearest = start + _lowest(kept, best, TILE_K)
    tl.store(ids + head.to(tl.int64) * num_tokens + tokens, nearest.to(tl.uint8), mask=is_token)


@triton.jit
def _add_members(values, members, total):
    """`total + values.T @ members`, exact products of ones and zeros with values of any dtype."""
    if values.dtype == OPERAND:
        total = tl.dot(values.T, members, total, input_precision="ieee")
    elif tl.float32 == OPERAND:
        total = tl.dot(values.to(tl.float32).T, members, total, input_precision="ieee")
    else:
        # Three bf16 values hold the 24 bits of a float32.
        rest = values.to(tl.float32)
        for _ in tl.static_range(3):
            part = rest.to(OPERAND)
            total = tl.dot(part.T, members, total)
            rest -= part.to(tl.float32)
    return total


@triton.jit
def _load_ids(ids, tokens, is_token):
    """Clusters of tokens, int32; -1 where `is_token` does not hold, cluster 0 for all without `ids`."""
    if ids is None:
        cluster = tl.where(is_token, 0, -1)
    else:
        cluster = tl.load(ids + tokens, mask=is_token, other=0).to(tl.int32)
        cluster = tl.where(is_token, cluster, -1)
    return cluster


@triton.jit
def _count(cluster, tile, TILE_K: tl.constexpr):
    """Tokens of each of the tile's clusters, int32."""
    member = cluster - tile * TILE_K
    return tl.histogram(member, TILE_K, mask=(member >= 0) & (member < TILE_K))


@kernel(do_not_specialize=["num_tokens", "tokens_per_split", "num_tiles"])
def _sum_kernel(
    block, head_stride, token_stride, offset, inverse, operand, bias, ids, sums, sizes,
    num_tokens, tokens_per_split, num_tiles, ASSIGNS: tl.constexpr,
    HEAD_DIM: tl.constexpr, TILE_S: tl.constexpr, TILE_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sums and sizes of TILE_K clusters over one split of the tokens.

    With ASSIGNS these are all clusters, and each token is first assigned to the nearest centroid.
    """
    # Programs of the same split are neighbours, so that the second finds its tokens in the cache.
    split, tile = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    head = tl.program_id(1)
    clusters = tile * TILE_K + tl.arange(0, TILE_K)
    channels = tl.arange(0, HEAD_DIM)
    # Channels in rows: both factors of the product then come from shared memory, and no two of its steps wait
    # for each other.
    total = tl.zeros([HEAD_DIM, TILE_K], tl.float32)
    size = tl.zeros([TILE_K], tl.int32)
    first_token = split * tokens_per_split
    stop = tl.minimum(first_token + tokens_per_split, num_tokens)
    if ids is not None:
        ids += head.to(tl.int64) * num_tokens
    if ASSIGNS:
        rows = head * TILE_K + clusters
        # [TILE_K, HEAD_DIM]
        centroids = tl.load(operand + rows[:, None] * HEAD_DIM + channels[None, :])
        biases = tl.load(bias + rows)
    else:
        tokens = first_token + tl.arange(0, TILE_S)
        upcoming = _load_ids(ids, tokens, tokens < stop)
    for first in tl.range(first_token, stop, TILE_S, num_stages=STAGES):
        tokens = first + tl.arange(0, TILE_S)
        is_token = tokens < stop
        # [TILE_S, HEAD_DIM]
        values = load_tokens(block, head_stride, token_stride, tokens, is_token, HEAD_DIM)
        if ASSIGNS:
            points = centred(values, offset, inverse, HEAD_DIM).to(OPERAND)
            closeness = _closeness(points, centroids, biases)
            nearest = _lowest(closeness, tl.max(closeness, 1), TILE_K)
            tl.store(ids + tokens, nearest.to(tl.uint8), mask=is_token)
            cluster = tl.where(is_token, nearest, -1)
        else:
            # The next tile's clusters are asked for while this tile is multiplied.
            cluster = upcoming
            upcoming = _load_ids(ids, tokens + TILE_S, tokens + TILE_S < stop)
        # Whichever way the clusters lie, a thread then holds neighbours of what it stores.
        if ASSIGNS:
            members = (cluster[:, None] == clusters[None, :]).to(OPERAND)
        else:
            members = (clusters[:, None] == cluster[None, :]).to(OPERAND).T
        total = _add_members(values, members, total)
        if ASSIGNS:
            size += _count(cluster, tile, TILE_K)
    if not ASSIGNS:
        # Many at a time: each count waits for all warps.
        for first in tl.range(first_token, stop, 8 * TILE_S, num_stages=1):
            counted = first + tl.arange(0, 8 * TILE_S)
            size += _count(_load_ids(ids, counted, counted < stop), tile, TILE_K)
    splits = tl.num_programs(0) // num_tiles
    row = (head * splits + split) * num_tiles * TILE_K + clusters
    tl.store(sums + row.to(tl.int64)[:, None] * HEAD_DIM + channels[None, :], tl.trans(total))
    tl.store(sizes + row, size.to(tl.float32))


@triton.jit
def add_splits(sums, sizes, rows, splits, num_rows, HEAD_DIM: tl.constexpr, TILE_K: tl.constexpr):
    """Sums `[TILE_K, HEAD_DIM]` and sizes `[TILE_K]` of clusters `rows` over all splits, in their order."""
    total = tl.zeros([TILE_K, HEAD_DIM], tl.float32)
    size = tl.zeros([TILE_K], tl.float32)
    for split in range(splits):
        row = (tl.program_id(1) * splits + split) * num_rows + rows
        total += tl.load(sums + row.to(tl.int64)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])
        size += tl.load(sizes + row)
    return total, size


@kernel(do_not_specialize=["count", "splits"])
def _mean_kernel(
    sums, sizes, offset, inverse, centroids, operand, bias, count, splits, num_rows,
    HEAD_DIM: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """Move TILE_K centroids to the means of their tokens; an empty cluster keeps its centroid."""
    rows = tl.program_id(0) * TILE_K + tl.arange(0, TILE_K)
    total, size = add_splits(sums, sizes, rows, splits, num_rows, HEAD_DIM, TILE_K)
    mean = centred(total / tl.maximum(size, 1.0)[:, None], offset, inverse, HEAD_DIM)
    row = (tl.program_id(1) * num_rows + rows)[:, None]
    # [TILE_K, HEAD_DIM]
    kept = tl.load(centroids + row * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :])
    values = tl.where((size > 0)[:, None], mean, kept)
    _store_centroids(values, rows, count, num_rows, centroids, operand, bias, HEAD_DIM)


def kmeans(points: Points, starts: Tensor, iterations: int, ids: Tensor) -> Tensor:
    """Lloyd's rounds from the points at `starts`; an empty cluster keeps its centroid.

    Args:
        starts: `[K]` int32 token numbers, K at most 256, the same for every head.
        iterations: Rounds of assigning every point and then moving every centroid to the mean of its points.
        ids: `[H, S]` uint8, contiguous; receives the ids of the last assignment.

    Returns:
        `[H, R, D]` float32, the means of exactly the points that `ids` names; R is a multiple of the rows of
        a tile, so that a launch can read them without a mask.
    """
    count, head_dim, rows = len(starts), points.head_dim, launch.MEAN_ROWS
    tile = launch.cluster_tile(count, head_dim, ids.device)
    num_rows = launch.round_up(count, tile)
    operand, bias = points.empty(num_rows, head_dim, dtype=numbers.OPERAND_DTYPE), points.empty(num_rows)
    centroids = points.empty(num_rows, head_dim)
    given = points.block, *points.strides, points.offset, points.inverse
    _start_kernel[(num_rows // rows, points.heads)](
        *given, starts, centroids, operand, bias, count, num_rows, head_dim, rows, num_warps=4
    )
    # Few centroids are found by the kernel that adds up their tokens: one of its programs must hold them all.
    is_few = num_rows <= min(tile, launch.ASSIGNED_CLUSTERS)
    shape = launch.assign(head_dim)
    for _ in range(iterations):
        if not is_few:
            _assign_kernel[(triton.cdiv(points.tokens, shape.rows), points.heads)](
                *given, operand, bias, ids, points.tokens, num_rows,
                head_dim, shape.rows, min(launch.MOST_ASSIGNED, tile), shape.stages, num_warps=shape.warps,
            )  # fmt: skip
        sums, sizes = cluster_sums(points, ids, count, (operand, bias) if is_few else None)
        _mean_kernel[(num_rows // rows, points.heads)](
            sums, sizes, points.offset, points.inverse, centroids, operand, bias, count, sums.shape[1],
            num_rows, head_dim, rows, num_warps=4,
        )  # fmt: skip
    return centroids


def cluster_sums(
    points: Points, ids: Tensor | None, count: int, centroids: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of the tokens of each cluster, not shifted or scaled, over splits of the tokens.

    Args:
        ids: `[H, S]` uint8, contiguous; `None` puts every token into cluster 0.
        count: K.
        centroids: Operand and bias, as `_store_centroids` has them; ids are those of the nearest, and are
            found first. All must fit a tile.

    Returns:
        Sums `[H, splits, R, D]` float32 and numbers of tokens `[H, splits, R]` float32, which whoever reads
        them adds in their order.
    """
    tokens, head_dim = points.tokens, points.head_dim
    tile = launch.cluster_tile(count, head_dim, points.block.device)
    num_rows, tokens_per_split = launch.round_up(count, tile), launch.split_tokens(tokens)
    splits, num_tiles = triton.cdiv(tokens, tokens_per_split), num_rows // tile
    sums, sizes = points.empty(splits, num_rows, head_dim), points.empty(splits, num_rows)
    shape = launch.sums(head_dim, assigns=centroids is not None)
    given = (None,) * 4
    if centroids is not None:
        given = points.offset, points.inverse, *centroids
    _sum_kernel[(splits * num_tiles, points.heads)](
        points.block, *points.strides, *given, ids, sums, sizes,
        tokens, tokens_per_split, num_tiles, centroids is not None,
        head_dim, shape.rows, tile, shape.stages, num_warps=shape.warps,
    )  # fmt: skip
    return sums, sizes
