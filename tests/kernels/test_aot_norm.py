"""What stands between a block's matrices compiles for every card, in all the ways in which it is called."""

import pytest
import torch

from qvg_kernels.norm.kernel import launch_add_norm, launch_norm_joined

from .aot import CAPABILITIES, SHARED_LIMITS, needs_compiler, recorded_launches

pytestmark = needs_compiler


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_launch_of_a_block_compiles(capability):
    with recorded_launches() as made:
        for channels in (1536, 3072):
            hidden = torch.zeros(1, 40, channels, dtype=torch.bfloat16)
            gate, factor, shift = torch.zeros(1, 6, channels)[:, :3].chunk(3, dim=1)
            launch_add_norm(hidden, None, None, factor, shift, 1e-6)
            launch_add_norm(hidden, hidden, gate, factor[0, 0], shift[0, 0], 1e-6)
            launch_add_norm(hidden, hidden, None, factor, shift, 1e-6)
            launch_add_norm(hidden, hidden, gate)
            joined = torch.zeros(1, 40, 3 * channels, dtype=torch.bfloat16)
            launch_norm_joined(joined, *torch.ones(2, channels, dtype=torch.bfloat16), 1e-6, ())
    launches = {launched.key(): launched for launched in made}
    assert len(launches) == 10
    for launched in launches.values():
        assert launched.compile(capability).shared <= SHARED_LIMITS[capability]
