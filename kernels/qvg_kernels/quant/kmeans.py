"""K-means with a fixed number of rounds and order of sums, so that the same points give the same bytes.

Invariant: nothing here waits on the host for data, draws from a global generator, or adds in a racing order.
"""

import torch
from torch import Tensor


def random_starts(tokens: int, count: int, stages: int, seed: int) -> Tensor:
    """`[stages, count]` int64 token numbers, drawn with replacement on the CPU: every device starts alike."""
    return torch.randint(0, tokens, (stages, count), generator=torch.Generator().manual_seed(seed))


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Number of the nearest centroid (squared Euclidean distance, the lowest number of equals).

    Args:
        points: `[S, D]` float32.
        centroids: `[K, D]` float32.

    Returns:
        `[S]` int64.
    """
    offsets = centroids.square().sum(-1)
    distances = torch.addmm(offsets.expand(points.shape[0], -1), points, centroids.T, alpha=-2)
    return distances.min(-1).indices


def cluster_sums(points: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum of the points of each cluster, `[K, D]`, and their number, `[K, 1]`, both float32.

    On a GPU the sums are a matrix product, which adds in a fixed order; `index_add_` does so only on a CPU.
    """
    if points.device.type == "cpu":
        sums = points.new_zeros(count, points.shape[1]).index_add_(0, ids, points)
        sizes = torch.bincount(ids, minlength=count).to(points.dtype)
        return sums, sizes.unsqueeze(-1)
    members = torch.nn.functional.one_hot(ids, count).to(points.dtype)
    return members.T @ points, members.sum(0).unsqueeze(-1)


def kmeans(points: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's rounds from given starting centroids; an empty cluster keeps its centroid.

    Args:
        points: `[S, D]` float32.
        centroids: `[K, D]` float32, the starting points.
        iterations: Rounds of assigning every point and then moving every centroid to the mean of its points.

    Returns:
        Ids `[S]` int64 of the last assignment and centroids `[K, D]`, the means of exactly those points.
    """
    ids = nearest(points, centroids)
    for iteration in range(iterations):
        if iteration > 0:
            ids = nearest(points, centroids)
        sums, sizes = cluster_sums(points, ids, centroids.shape[0])
        centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
    return ids, centroids


def spread_starts(tokens: int, count: int, device: torch.device) -> Tensor:
    """`[count]` int64 token numbers, evenly spread over the block: the middles of `count` equal parts."""
    places = 2 * torch.arange(count, device=device) + 1
    return (places * tokens) // (2 * count)
