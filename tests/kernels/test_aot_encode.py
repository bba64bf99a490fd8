"""Encoding compiles for every card, within its shared memory, from the launches of real calls."""

import pytest
import torch

from qvg_kernels.codecs import encoding as encode
from qvg_kernels.runtime import encode_sizes
from qvg_kernels.spec import AsymSpec, FittedSpec, QvgSpec

from .aot import CAPABILITIES, SHARED_LIMITS, needs_compiler, recorded_launches

pytestmark = [needs_compiler, pytest.mark.slow]

CALLS = [(encode.encode_fitted, FittedSpec(grid=grid)) for grid in ("e8", "int2", "int3", "int4", "trit")]
CALLS += [
    (encode.encode_fitted, FittedSpec(num_centroids=0)),
    (encode.encode_qvg, QvgSpec()),
    (encode.encode_qvg, QvgSpec(stages=2, block_size=16)),
    (encode.encode_asym, AsymSpec()),
]


def launches_of(calls, tokens, head_dim, dtype=torch.bfloat16):
    """The launches of `calls` that differ in more than their tensors."""
    launches = {}
    for encoded, spec in calls:
        with recorded_launches() as made:
            encoded(torch.zeros(1, 2, tokens, head_dim, dtype=dtype), spec, 1)
        launches |= {launched.key(): launched for launched in made}
    return launches.values()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_launch_of_an_encoding_compiles(capability, monkeypatch):
    monkeypatch.setattr(encode_sizes, "capability", lambda device: divmod(capability, 10))
    launches = [
        *launches_of(CALLS, 37440, 128),
        *launches_of(CALLS[:1], 4680, 128),
        *launches_of(CALLS[:1], 600, 64),
        *launches_of(CALLS[:1], 7040, 256),
        *launches_of(CALLS[:1], 600, 128, torch.float32),
    ]
    assert len({launched.name for launched in launches}) > 12
    for launched in launches:
        shared = launched.compile(capability).shared
        assert shared <= SHARED_LIMITS[capability], f"{launched.name} takes {shared} bytes"
