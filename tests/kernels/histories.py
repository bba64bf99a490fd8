"""Small blocks of every scheme that has kernels."""

import pytest
import torch

from qvg_kernels.attention.history import History, StoredBlock
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.rope.placement import FrameMatrices, Rotary
from qvg_kernels.rope.tables import RotaryTables
from qvg_kernels.spec import AsymSpec, Bf16Spec, FittedSpec, QvgSpec

SLOW = pytest.mark.slow
SPECS = [
    *(pytest.param(FittedSpec(grid=grid), id=grid) for grid in ("e8", "int3", "trit")),
    *(pytest.param(FittedSpec(grid=grid), id=grid, marks=SLOW) for grid in ("e8x1", "int2", "int4")),
    pytest.param(FittedSpec(num_centroids=0), id="without a table"),
    *(pytest.param(FittedSpec(shaping=each), id=f"shaped {each}") for each in ("key", "value")),
    pytest.param(FittedSpec(num_centroids=0, shaping="key"), id="shaped, without a table", marks=SLOW),
    pytest.param(QvgSpec(num_centroids=16), id="qvg"),
    pytest.param(QvgSpec(num_centroids=16, stages=2, block_size=16, bits=4), id="qvg in stages", marks=SLOW),
    pytest.param(AsymSpec(num_centroids=16), id="asym"),
    pytest.param(Bf16Spec(), id="bf16"),
]

PLACEMENTS = ["rotary", "matrices"]


def make_span(*shape, dtype=torch.float32):
    """Clusters, channel offsets and noise, `[B, H, S, D]`."""
    batch, heads, tokens, head_dim = shape
    generator = torch.Generator().manual_seed(tokens * head_dim)
    centres = torch.randn(batch, heads, 6, head_dim, generator=generator)
    ids = torch.randint(0, 6, (tokens,), generator=generator)
    offset = 4 * torch.randn(batch, heads, 1, head_dim, generator=generator)
    noise = 0.3 * torch.randn(batch, heads, tokens, head_dim, generator=generator)
    return (centres[:, :, ids] + offset + noise).to(dtype)


ROWS, COLUMNS = 3, 4


def placement_of(name, tokens, head_dim=64):
    """A placement of `tokens` tokens in frames of 12; slots are not in order."""
    frames = -(-tokens // (ROWS * COLUMNS))
    slots = tuple((7 * frame + 2) % 11 for frame in range(frames))
    if name == "matrices":
        matrices = torch.randn(11, 4, 4, generator=torch.Generator().manual_seed(2))
        return FrameMatrices(matrices, float(matrices.abs().sum(-1).max()), ROWS * COLUMNS, slots)
    return Rotary(RotaryTables.of(head_dim, 16, torch.device("cpu")), ROWS, COLUMNS, slots)


def history_of(spec, *, head_dim, lengths=(24, 41, 12), placement="rotary", batch=1, heads=2, size=1.0):
    """Blocks of `lengths` tokens; of the second one only tokens 7 on, as after an eviction."""
    codec = build_codec(spec)
    blocks = []
    shapers = [None, None]
    for index, tokens in enumerate(lengths):
        generator = torch.Generator().manual_seed(index)
        span = torch.randn(batch, heads, tokens, head_dim, generator=generator)
        span = span * (1 + torch.arange(head_dim) / 16) + 3 * torch.randn(head_dim, generator=generator)
        span = size * span
        placed = placement_of(placement, tokens, head_dim)
        first = 7 if index == 1 else 0
        spans = span, 2 * span.flip(2)
        if spec.is_shaped and index < 2:
            # Two versions, as a layer has them.
            moments = [codec.residual_moment(each, seed=index) for each in spans]
            shapers = [
                codec.shaper_of(codec.shaping_matrix(moment, moments[0].double())) for moment in moments
            ]
        key, value = (
            codec.encode(each, seed=index, shaper=shaper) for each, shaper in zip(spans, shapers, strict=True)
        )
        value_placement = placed if placement == "matrices" else None
        blocks.append(StoredBlock(codec, codec, key, value, placed, value_placement, first, tokens - first))
    return History(tuple(blocks))
