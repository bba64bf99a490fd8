"""CUDA graphs that run one after the other use the same memory, and none disturbs another."""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qvg_kernels.runtime.replay import capture, replay

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_graph_takes_what_another_has_freed():
    device, pool, num_bytes = torch.device("cuda"), torch.cuda.graph_pool_handle(), 2**26

    def compute():
        # Not uint8, which is summed as a copy eight times as large.
        return torch.zeros(num_bytes // 4, device=device).sum()

    compute()
    reserved = torch.cuda.memory_reserved()
    graphs = [capture(compute, pool, device) for _ in range(8)]
    assert torch.cuda.memory_reserved() - reserved <= 2 * num_bytes
    for graph, total in graphs:
        graph.replay()
        assert total.item() == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, KeyError])
def test_after_a_capture_that_failed_others_succeed(error):
    device = torch.device("cuda")
    inputs, is_failing = torch.arange(6.0, device=device), True

    def compute(inputs):
        doubled = inputs[0] * 2
        if is_failing and torch.cuda.is_current_stream_capturing():
            raise error
        return [doubled]

    replay(error, compute, [inputs])
    with pytest.raises(error):
        replay(error, compute, [inputs])
    is_failing = False
    for factor in range(4):
        (doubled,) = replay(error, compute, [inputs * factor])
        assert doubled.equal(2 * factor * inputs)


def test_a_capture_takes_memory_that_the_allocator_kept():
    device, num_bytes = torch.device("cuda"), 2**28

    def compute():
        ones = torch.ones(4, device=device)
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device), ones * 2

    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    room = torch.cuda.memory_reserved() + num_bytes + num_bytes // 2
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        torch.empty(num_bytes, dtype=torch.uint8, device=device)
        pool = torch.cuda.graph_pool_handle()
        graph, made = capture(compute, pool, device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    graph.replay()
    assert not made[0].any()


def test_a_graph_that_is_forgotten_during_a_capture_stays_until_it_ends():
    device = torch.device("cuda")

    def compute():
        return torch.ones(4, device=device) * 3

    graph, _ = capture(compute, torch.cuda.graph_pool_handle(), device)
    cycle = [graph]
    cycle.append(cycle)
    threshold = gc.get_threshold()

    def forget():
        nonlocal cycle, graph
        del cycle, graph
        # So often that each new container would collect.
        gc.set_threshold(1)
        _ = [[] for _ in range(100)]
        return compute()

    try:
        other, threes = capture(forget, torch.cuda.graph_pool_handle(), device)
    finally:
        gc.set_threshold(*threshold)
    other.replay()
    assert threes.eq(3).all()


def test_threads_do_not_mix_their_tensors():
    device = torch.device("cuda")

    def compute(inputs):
        return [inputs[0] * 2]

    def work(number):
        values = torch.full((1000,), float(number), device=device)
        return all(replay("threads", compute, [values])[0].eq(2 * number).all() for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
