"""A call that launches many small kernels as one CUDA graph: at short histories the GPU waits for the host.

Packing a chunk of Self-Forcing launches some 20 kernels a side of a layer, which take the host ten times as
long as the GPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_BYTES = 32 * 2**20
"""Of inputs: above it the kernels take longer than their launching, and a graph would hold much memory."""
MOST_GRAPHS = 4
"""Keys and values of two sizes of blocks."""

Compute = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]


_seen: OrderedDict[Hashable, _Captured | None] = OrderedDict()


def replay(key: Hashable, compute: Compute, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What `compute` makes of `inputs`, with the same bits; from the second such call on as one graph.

    Args:
        key: What `compute` depends on beside the shapes of its inputs.
        compute: Launches kernels on the current stream, and neither waits for the GPU nor copies to it.
        inputs: On one device.
    """
    device = inputs[0].device
    is_large = sum(each.numel() * each.element_size() for each in inputs) > LARGEST_BYTES
    if device.type != "cuda" or is_large or torch.cuda.is_current_stream_capturing():
        return compute(inputs)
    stream = torch.cuda.current_stream(device)
    # Calls on two streams run at the same time and need memory of their own.
    key = (key, stream, *((each.shape, each.stride(), each.dtype) for each in inputs))
    if key not in _seen:
        _seen[key] = None
        if len(_seen) > MOST_GRAPHS:
            _seen.popitem(last=False)
        return compute(inputs)
    _seen.move_to_end(key)
    captured = _seen[key]
    if captured is None:
        captured = _seen[key] = _capture(compute, inputs, stream)
    for target, each in zip(captured.inputs, inputs, strict=True):
        target.copy_(each)
    captured.graph.replay()
    return [each.clone() for each in captured.outputs]


def _capture(compute: Compute, inputs: Sequence[Tensor], stream: torch.cuda.Stream) -> _Captured:
    # The same strides, for which the kernels have been compiled.
    own = [each.new_empty_strided(each.shape, each.stride()) for each in inputs]
    # Nothing is compiled or loaded while kernels are captured, whatever the addresses were aligned to.
    compute([target.copy_(each) for target, each in zip(own, inputs, strict=True)])
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream(stream.device)
    aside.wait_stream(stream)
    with torch.cuda.stream(aside):
        # Other threads copy and allocate meanwhile.
        graph.capture_begin(capture_error_mode="thread_local")
        outputs = compute(own)
        graph.capture_end()
    stream.wait_stream(aside)
    return _Captured(graph, own, outputs)
