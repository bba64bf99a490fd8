"""A video that grows compiles no kernel again: neither more keys nor smaller groups of heads need another."""

import pytest
import torch

from qvg_kernels.attention import packed
from qvg_kernels.attention.heads import BF16, FP8, INT8
from qvg_kernels.attention.history import History, OwnKeys, Workspace
from qvg_kernels.runtime import launch
from qvg_kernels.spec import FittedSpec

from .aot import needs_compiler, recorded_launches
from .histories import history_of, placement_of

pytestmark = needs_compiler


@pytest.fixture
def launched(monkeypatch):
    """What attention on a Hopper GPU has compiled, and in how many groups heads go."""
    monkeypatch.setattr(launch, "attend_table", lambda device: launch.AttendTable.for_capability((9, 0)))
    monkeypatch.setattr(launch, "has_gluon", lambda device: True)

    def attend(blocks, operands, placement="rotary", limit_bytes=2**28, heads=2):
        placed = placement_of(placement, 24, head_dim=128)
        key, query = (torch.zeros(1, heads, 24, 128, dtype=torch.bfloat16) for _ in range(2))
        own = OwnKeys(key, key, placed, placed if placement == "matrices" else None)
        with recorded_launches() as launches:
            packed.attend(query, History(blocks), own, Workspace(limit_bytes), operands)
        return {each.key() for each in launches}, sum(each.name == "merge_kernel" for each in launches)

    return attend


@pytest.mark.parametrize("operands", [BF16, INT8, FP8], ids=lambda operands: operands.words)
def test_a_longer_history_needs_no_other_kernels(operands, launched):
    blocks = history_of(FittedSpec(), head_dim=128, lengths=(24,) * 20).blocks
    first, _ = launched(blocks[1:2], operands)
    for count in (2, 3, 8, 16, 17):
        assert launched(blocks[1 : 1 + count], operands)[0] <= first


@pytest.mark.parametrize("placement", ["rotary", "matrices"])
@pytest.mark.parametrize("operands", [BF16, INT8, FP8], ids=lambda operands: operands.words)
def test_heads_in_groups_need_no_other_kernels(operands, placement, launched):
    blocks = history_of(FittedSpec(), head_dim=128, lengths=(24,) * 5, placement=placement, heads=6).blocks
    together, num_groups = launched(blocks, operands, placement, heads=6)
    assert num_groups == 1
    for limit_bytes in (2**20, 2**18):
        kernels, num_groups = launched(blocks, operands, placement, limit_bytes, heads=6)
        assert kernels <= together
    assert num_groups > 1
