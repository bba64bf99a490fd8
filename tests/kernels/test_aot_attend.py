"""Reading and attending compile for every card, within its shared memory, from the launches of real calls."""

import pytest
import torch

from qvg_kernels.attention import packed
from qvg_kernels.attention.heads import BF16, FP8, INT8
from qvg_kernels.attention.history import OwnKeys, Workspace
from qvg_kernels.runtime import launch
from qvg_kernels.spec import AsymSpec, Bf16Spec, FittedSpec, QvgSpec

from .aot import CAPABILITIES, SHARED_LIMITS, needs_compiler, recorded_launches
from .histories import history_of, placement_of

pytestmark = [needs_compiler, pytest.mark.slow]

SPECS = [FittedSpec(grid=grid) for grid in ("e8", "e8x1", "int2", "int3", "int4", "trit")]
SPECS += [FittedSpec(shaping="key"), FittedSpec(shaping="value"), FittedSpec(grid="trit", shaping="key")]
SPECS += [FittedSpec(num_centroids=0), QvgSpec(), QvgSpec(stages=4, block_size=16), AsymSpec(), Bf16Spec()]


def launches_of(capability, placement, patch):
    """The different launches of attention to every scheme on a card."""
    as_on_card = launch.AttendTable.for_capability(divmod(capability, 10))
    patch.setattr(launch, "attend_table", lambda device: as_on_card)
    patch.setattr(launch, "has_gluon", lambda device: capability == 90)
    if capability != 90:
        patch.setattr(packed, "choose_fused", lambda *_: None)
    # The default preset and shaped errors meet both placements, the others one of them.
    shaped = [spec for spec in SPECS if spec.is_shaped]
    specs = SPECS if placement == "rotary" else [SPECS[0], *shaped]
    every = (BF16, INT8, FP8) if capability >= 89 else (INT8, BF16)
    launches = {}
    for spec in specs:
        # What attends to them is the same for all schemes: those without a decoder for Hopper are read in one
        # way.
        for operands in every if spec in SPECS[:2] or spec.is_shaped else every[-1:]:
            with recorded_launches() as made:
                attend_once(spec, placement, operands)
            launches |= {launched.key(): launched for launched in made}
    return list(launches.values())


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("placement", ["rotary", "matrices"])
def test_every_launch_of_an_attention_call_compiles(capability, placement, monkeypatch):
    launches = launches_of(capability, placement, monkeypatch)
    for name in ("_attend_hopper", "_decode_lattice"):
        assert (name in {launched.name for launched in launches}) == (capability == 90)
    for launched in launches:
        shared = launched.compile(capability).shared
        assert shared <= SHARED_LIMITS[capability], f"{launched.name} takes {shared} bytes"


def attend_once(spec, placement, operands):
    history = history_of(spec, head_dim=128, lengths=(40, 24), placement=placement)
    key, value = (torch.zeros(1, 24, 2, 128, dtype=torch.bfloat16).transpose(1, 2) for _ in range(2))
    placed = placement_of(placement, 24, head_dim=128)
    own = OwnKeys(key, value, placed, placed if placement == "matrices" else None)
    query = torch.zeros(1, 2, 24, 128, dtype=torch.bfloat16)
    packed.attend(query, history, own, Workspace(), operands)
