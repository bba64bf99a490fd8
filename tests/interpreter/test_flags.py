"""Queries that `attend_hopper` leaves to `attend_kernel` are those with a flag, and no others."""

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from qvg_kernels.attention.kernels import attend_kernel

HEADS, QUERIES, KEYS, HEAD_DIM, BLOCK, SPLITS = 2, 40, 96, 64, 16, 2
TILES = -(-QUERIES // BLOCK)


def attended(flags):
    """State of int8 keys and float32 values, which held 7 everywhere."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, HEADS, QUERIES, HEAD_DIM, generator=generator)
    key = torch.randint(-127, 128, (HEADS * KEYS, HEAD_DIM), dtype=torch.int8, generator=generator)
    value = torch.randn(HEADS * KEYS, HEAD_DIM, generator=generator)
    units, factors = torch.full((HEADS,), 0.01), torch.ones(HEADS, HEAD_DIM)
    maximum, total = (torch.full((SPLITS, HEADS, QUERIES), 7.0) for _ in range(2))
    output = torch.full((SPLITS, HEADS, QUERIES, HEAD_DIM), 7.0)
    attend_kernel[(TILES, HEADS, SPLITS)](
        query, TensorDescriptor.from_tensor(key, [32, HEAD_DIM]),
        TensorDescriptor.from_tensor(value, [32, HEAD_DIM]),
        units, factors, None, maximum, total, output, *query.stride()[:3],
        HEADS, HEADS, QUERIES, KEYS, KEYS // SPLITS, KEYS, 0, HEAD_DIM**-0.5, flags,
        IS_INT8=True, IS_E4M3=False,
        HEAD_DIM=HEAD_DIM, TILE_M=BLOCK, TILE_N=32, STAGES=1,
    )  # fmt: skip
    return torch.cat([maximum.unsqueeze(-1), total.unsqueeze(-1), output], -1)


def test_only_queries_with_a_flag_are_attended():
    every = attended(None)
    flags = torch.randint(
        0, 2, (SPLITS, HEADS, TILES), dtype=torch.int32, generator=torch.Generator().manual_seed(1)
    )
    has_flag = flags.bool().repeat_interleave(BLOCK, -1)[..., :QUERIES, None]
    assert torch.equal(attended(flags), torch.where(has_flag, every, torch.tensor(7.0)))
