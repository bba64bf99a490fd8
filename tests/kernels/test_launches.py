"""What a call launches, seen from the launches alone."""

import pytest
import torch

from qvg_kernels.gpu import attention, launch
from qvg_kernels.gpu.operands import BF16, FP8, INT8
from qvg_kernels.segments import GivenSegment, History
from qvg_kernels.spec import FittedSpec
from qvg_kernels.workspace import Workspace

from .aot import needs_compiler, recorded_launches
from .histories import history_of, placement_of

pytestmark = needs_compiler


@pytest.mark.parametrize("operands", [BF16, INT8, FP8], ids=lambda operands: operands.words)
def test_a_longer_history_needs_no_other_kernels(operands, monkeypatch):
    monkeypatch.setattr(launch, "attend_table", lambda device: launch.AttendTable.for_capability((9, 0)))
    monkeypatch.setattr(launch, "has_gluon", lambda device: True)
    segments = history_of(FittedSpec(), head_dim=128, lengths=(24,) * 20).segments
    placed = placement_of("rotary", 24, head_dim=128)
    key, query = (torch.zeros(1, 2, 24, 128, dtype=torch.bfloat16) for _ in range(2))
    given = GivenSegment(key, key, placed, None)

    def launched(num_segments):
        history = History(segments[1 : 1 + num_segments])
        with recorded_launches() as launches:
            attention.attend(query, history, given, Workspace(), operands)
        return {each.key() for each in launches}

    first = launched(1)
    assert [launched(count) - first for count in (2, 3, 8, 16, 17)] == [set()] * 5
