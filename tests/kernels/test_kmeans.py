"""K-means: what is assigned, what moves, and that nothing depends on how often or where it runs."""

import pytest
import torch

from qvg_kernels.quant.kmeans import cluster_sums, kmeans, nearest, random_starts, spread_starts


def test_points_go_to_the_nearest_centroid_and_ties_to_the_first():
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
    centroids = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    assert nearest(points, centroids).tolist() == [1, 0, 0]


def test_centroids_are_the_means_of_the_ids_that_are_returned():
    points = torch.randn(500, 8)
    ids, centroids = kmeans(points, points[:7], 3)
    for cluster in range(7):
        assert torch.allclose(centroids[cluster], points[ids == cluster].mean(0), atol=1e-5)


def test_an_empty_cluster_keeps_its_centroid():
    points = torch.zeros(4, 2)
    starts = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    ids, centroids = kmeans(points, starts, 2)
    assert ids.tolist() == [0, 0, 0, 0]
    assert centroids.tolist() == starts.tolist()


def test_more_rounds_never_raise_the_error():
    points = torch.randn(400, 16)
    errors = []
    for iterations in (1, 2, 4, 8):
        ids, centroids = kmeans(points, points[:20], iterations)
        errors.append((points - centroids[ids]).square().sum().item())
    assert errors == sorted(errors, reverse=True)


def test_sums_by_cluster_equal_a_loop():
    points, ids = torch.randn(50, 3), torch.randint(0, 4, (50,))
    sums, sizes = cluster_sums(points, ids, 5)
    assert sizes.flatten().tolist() == [float((ids == cluster).sum()) for cluster in range(5)]
    for cluster in range(5):
        assert torch.allclose(sums[cluster], points[ids == cluster].sum(0), atol=1e-5)


@pytest.mark.parametrize(("tokens", "count"), [(10, 10), (10, 3), (4680, 64), (1, 1)])
def test_spread_starts_are_different_and_in_order(tokens, count):
    starts = spread_starts(tokens, count, torch.device("cpu")).tolist()
    assert starts == sorted(set(starts))
    assert len(starts) == count
    assert starts[0] >= 0
    assert starts[-1] < tokens


def test_random_starts_come_from_the_given_seed():
    draws = [random_starts(100, 9, 1, seed).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
