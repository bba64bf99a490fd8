"""Encoding compiles for every card, within its shared memory, from the launches of real calls."""

import pytest
import torch

from qvg_kernels.codec import Shaper
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.runtime import launch
from qvg_kernels.spec import AsymSpec, FittedSpec, QvgSpec

from .aot import CAPABILITIES, SHARED_LIMITS, needs_compiler, recorded_launches

pytestmark = [needs_compiler, pytest.mark.slow]

SPECS = [FittedSpec(grid=grid) for grid in ("e8", "e8x1", "int2", "int3", "int4", "trit")]
SHAPED = [FittedSpec(shaping="key"), FittedSpec(shaping="value")]
SPECS += [*SHAPED, FittedSpec(num_centroids=0), QvgSpec(), QvgSpec(stages=2, block_size=16), AsymSpec()]


def launches_of(capability, patch):
    """The launches of encoding that differ in more than their tensors, on a card."""
    patch.setattr(launch, "capability", lambda device: divmod(capability, 10))
    blocks = [
        (SPECS, 37440, 128, torch.bfloat16),
        (SPECS[:1], 4680, 128, torch.bfloat16),
        (SPECS[:1], 600, 64, torch.bfloat16),
        ([SPECS[0], *SHAPED], 7040, 256, torch.bfloat16),
        (SPECS[:1], 600, 128, torch.float32),
    ]
    launches = {}
    for specs, tokens, head_dim, dtype in blocks:
        for spec in specs:
            with recorded_launches() as made:
                block = torch.zeros(1, 2, tokens, head_dim, dtype=dtype)
                one = torch.eye(head_dim).repeat(1, 2, 1, 1)
                shaper = Shaper(one.bfloat16(), one.half()) if spec.is_shaped else None
                build_codec(spec).encode_by_kernels(block, 1, shaper)
            launches |= {launched.key(): launched for launched in made}
    return list(launches.values())


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_launch_of_an_encoding_compiles(capability, monkeypatch):
    launches = launches_of(capability, monkeypatch)
    assert len({launched.name for launched in launches}) > 12
    for launched in launches:
        shared = launched.compile(capability).shared
        assert shared <= SHARED_LIMITS[capability], f"{launched.name} takes {shared} bytes"
