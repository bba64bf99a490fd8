"""Queries in int8: units, factors, and two versions whose errors are nearly opposite."""

import torch

from qvg_kernels.attention.kernels import round_queries_kernel

HEADS, QUERIES, PITCH, HEAD_DIM = 3, 21, 32, 64


def test_the_mean_of_both_versions_is_nearer_than_either():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, QUERIES, HEADS, HEAD_DIM, generator=generator).transpose(1, 2)
    factors = torch.rand(HEADS, HEAD_DIM, generator=generator) / 2 + 0.5
    rounded = torch.full((2, HEADS, PITCH, HEAD_DIM), 99, dtype=torch.int8)
    units = torch.full((HEADS, QUERIES), float("nan"))
    round_queries_kernel[(1, HEADS)](
        query, factors, rounded, units, *query.stride()[:3], HEADS, HEADS, QUERIES, PITCH,
        HEAD_DIM=HEAD_DIM, TILE_M=32,
    )  # fmt: skip
    scaled = query[0] * factors.unsqueeze(1)
    torch.testing.assert_close(units, scaled.abs().amax(-1) / 127)
    assert (rounded[:, :, QUERIES:] == 0).all()
    errors = rounded[:, :, :QUERIES].float() - scaled / units.unsqueeze(-1)
    # What int8 takes is first float16, whose step is an eighth near 127.
    assert (errors.abs() <= 0.75 + 1 / 8).all()
    assert (errors.mean(0).abs() <= 0.25 + 1 / 8).all()
    assert errors.mean(0).square().mean() < errors[0].square().mean() / 3
