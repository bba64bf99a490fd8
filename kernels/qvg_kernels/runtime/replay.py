"""A call that launches many small kernels as one CUDA graph: at short histories the GPU waits for the host.

Packing a chunk of Self-Forcing launches some 20 kernels a side of a layer, which take the host ten times as
long as the GPU.
"""

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

LARGEST_BYTES = 32 * 2**20
"""Most bytes of inputs: beyond, kernels take longer than their launching, and graphs hold much memory."""
MOST_GRAPHS = 2
"""Graphs that a stream keeps: blocks of two sizes."""

_TURN = threading.RLock()
"""Held while a graph is captured or launched: threads share the streams, and so the graphs' tensors."""

Compute = Callable[[Sequence[Tensor]], list[Tensor]]
Made = TypeVar("Made")


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]


class _Stream:
    """The graphs of one stream: one runs after the other, so they use the same memory."""

    def __init__(self) -> None:
        self.last: Hashable = None
        self.captured: OrderedDict[Hashable, _Captured] = OrderedDict()


@cache
def _graphs_of(stream: torch.cuda.Stream) -> _Stream:
    return _Stream()


def replay(key: Hashable, compute: Compute, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What `compute` makes of `inputs`, with the same bits; the second such call in a row is captured.

    It and those that follow are launched as one graph.

    Args:
        key: What `compute` depends on beside the shapes of its inputs.
        compute: Launches kernels on the current stream, and neither waits for the GPU nor copies to it.
        inputs: On one device.
    """
    device = inputs[0].device
    is_large = sum(each.numel() * each.element_size() for each in inputs) > LARGEST_BYTES
    if device.type != "cuda" or is_large or torch.cuda.is_current_stream_capturing():
        return compute(inputs)
    with _TURN:
        stream = _graphs_of(torch.cuda.current_stream(device))
        key = (key, *((each.shape, each.stride(), each.dtype) for each in inputs))
        is_repeated, stream.last = stream.last == key, key
        if key not in stream.captured:
            if not is_repeated:
                return compute(inputs)
            # A pool of which all graphs are gone takes no new one.
            pools = [each.graph.pool() for each in stream.captured.values()]
            pool = pools[0] if pools else torch.cuda.graph_pool_handle()
            stream.captured[key] = _capture(compute, inputs, pool)
            if len(stream.captured) > MOST_GRAPHS:
                stream.captured.popitem(last=False)
        stream.captured.move_to_end(key)
        captured = stream.captured[key]
        for target, each in zip(captured.inputs, inputs, strict=True):
            target.copy_(each)
        captured.graph.replay()
        return [each.clone() for each in captured.outputs]


def capture(
    compute: Callable[[], Made], pool: Any, device: torch.device
) -> tuple[torch.cuda.CUDAGraph, Made]:
    """The kernels that `compute` launches, as a graph, and what it returns.

    `torch.cuda.graph` waits for the device and frees the allocator's memory each time; this where it has to.

    Args:
        pool: Memory of what lives inside the graph, and inside others that run before or after it.
    """
    with _TURN:
        is_collecting = gc.isenabled()
        try:
            # It might destroy another graph, which a capture does not survive: pytorch/pytorch#161037.
            gc.disable()
            first = torch.cuda.CUDAGraph()
            with suppress(torch.OutOfMemoryError):
                return first, _record(first, compute, pool, device)
            # While it captures, the allocator gives nothing back that it keeps for others.
            torch.cuda.empty_cache()
            # The pool would be gone with the first, if no other graph uses it.
            second = torch.cuda.CUDAGraph()
            return second, _record(second, compute, pool, device)
        finally:
            if is_collecting:
                gc.enable()


def _record(
    graph: torch.cuda.CUDAGraph, compute: Callable[[], Made], pool: Any, device: torch.device
) -> Made:
    stream, current = _capturing(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        try:
            # Other threads copy and allocate meanwhile.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            made = compute()
            graph.capture_end()
        except BaseException:
            # Else the stream would capture for good. What ended it says more than how it ends.
            with suppress(Exception):
                graph.capture_end()
            raise
    current.wait_stream(stream)
    return made


@cache
def _capturing(device: torch.device) -> torch.cuda.Stream:
    """Always the same: what a graph has freed, the allocator gives to others of its stream alone."""
    return torch.cuda.Stream(device)


def _capture(compute: Compute, inputs: Sequence[Tensor], pool: Any) -> _Captured:
    # The same strides, for which the kernels have been compiled.
    own = [each.new_empty_strided(each.shape, each.stride()) for each in inputs]
    # Nothing is compiled or loaded while kernels are captured, whatever the addresses were aligned to.
    compute([target.copy_(each) for target, each in zip(own, inputs, strict=True)])
    graph, outputs = capture(lambda: compute(own), pool, own[0].device)
    return _Captured(graph, own, outputs)
