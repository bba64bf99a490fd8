"""What a call launches, seen from the launches alone."""

import pytest
import torch

from qvg_kernels.attention import packed as attention
from qvg_kernels.attention.heads import BF16, FP8, INT8
from qvg_kernels.attention.history import History, OwnKeys, Workspace
from qvg_kernels.attention.tiling import cut_attention
from qvg_kernels.runtime import launch
from qvg_kernels.spec import FittedSpec

from .aot import needs_compiler, recorded_launches
from .histories import history_of, placement_of

pytestmark = needs_compiler


@pytest.mark.parametrize("operands", [BF16, INT8, FP8], ids=lambda operands: operands.words)
def test_a_longer_history_needs_no_other_kernels(operands, monkeypatch):
    monkeypatch.setattr(launch, "attend_table", lambda device: launch.AttendTable.for_capability((9, 0)))
    monkeypatch.setattr(launch, "has_gluon", lambda device: True)
    blocks = history_of(FittedSpec(), head_dim=128, lengths=(24,) * 20).blocks
    placed = placement_of("rotary", 24, head_dim=128)
    key, query = (torch.zeros(1, 2, 24, 128, dtype=torch.bfloat16) for _ in range(2))
    own = OwnKeys(key, key, placed, None)

    def launched(num_blocks):
        history = History(blocks[1 : 1 + num_blocks])
        with recorded_launches() as launches:
            attention.attend(query, history, own, Workspace(), operands)
        return {each.key() for each in launches}

    first = launched(1)
    assert [launched(count) - first for count in (2, 3, 8, 16, 17)] == [set()] * 5


@pytest.mark.parametrize("placement", ["rotary", "matrices"])
@pytest.mark.parametrize("operands", [BF16, INT8, FP8], ids=lambda operands: operands.words)
def test_heads_in_groups_need_no_other_kernels(operands, placement, monkeypatch):
    monkeypatch.setattr(launch, "attend_table", lambda device: launch.AttendTable.for_capability((9, 0)))
    monkeypatch.setattr(launch, "has_gluon", lambda device: True)
    heads = 6
    history = history_of(FittedSpec(), head_dim=128, lengths=(24,) * 5, placement=placement, heads=heads)
    placed = placement_of(placement, 24, head_dim=128)
    key, query = (torch.zeros(1, heads, 24, 128, dtype=torch.bfloat16) for _ in range(2))
    own = OwnKeys(key, key, placed, placed if placement == "matrices" else None)
    launched, groups = [], []

    def cut(*arguments):
        found = cut_attention(*arguments)
        groups.append(found.heads)
        return found

    monkeypatch.setattr(attention, "cut_attention", cut)
    for limit_bytes in (2**28, 2**20, 2**18):
        with recorded_launches() as launches:
            attention.attend(query, history, own, Workspace(limit_bytes), operands)
        launched.append({each.key() for each in launches})
    assert groups[0] == heads
    assert groups[-1] < heads
    assert [each - launched[0] for each in launched[1:]] == [set(), set()]
