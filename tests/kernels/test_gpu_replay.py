"""CUDA graphs that run one after the other use the same memory."""

import pytest
import torch

from qvg_kernels.runtime.replay import capture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_graph_takes_what_another_has_freed():
    device, pool, num_bytes = torch.device("cuda"), torch.cuda.graph_pool_handle(), 2**26

    def compute():
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device).sum()

    compute()
    reserved = torch.cuda.memory_reserved()
    graphs = [capture(compute, pool, device) for _ in range(8)]
    assert torch.cuda.memory_reserved() - reserved <= 2 * num_bytes
    for graph, total in graphs:
        graph.replay()
        assert total.item() == 0
