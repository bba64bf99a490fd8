"""Writing beside the computing: what a chunk leaves goes to the host and to the disk while the next is made.

Invariant: one piece of work is under way at most, and whoever hands over the next one waits for it, so a
process that dies loses at most the chunk in hand and the one that was being written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Writer(Generic[Result]):
    """Does one piece of work at a time on a thread of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "writer")
        self._work: Future[Result] | None = None

    def start(self, work: Callable[[], Result]) -> None:
        """Begin a piece of work; what was begun before has been waited for."""
        assert self._work is None
        self._work = self._pool.submit(work)

    def wait(self) -> Result | None:
        """What the work under way has given, once it has ended, or raised; `None` if there is none."""
        work, self._work = self._work, None
        return None if work is None else work.result()


def copy_to_host(
    tensors: Mapping[str, Tensor], stream: torch.cuda.Stream | None
) -> Callable[[], dict[str, Tensor]]:
    """Begin to copy tensors to the host, and return a function that gives the copies once they are whole.

    Args:
        tensors: Not changed any more; their memory may be given to others as soon as nothing here needs it.
        stream: Copies beside what the device computes, into pinned memory; `None` where the tensors are on
            the host, which are taken as they are.
    """
    if stream is None:
        return lambda: dict(tensors)
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        for tensor in tensors.values():
            tensor.record_stream(stream)
        copied = torch.cuda.Event(blocking=True)
        copied.record(stream)

    def whole() -> dict[str, Tensor]:
        copied.synchronize()
        return copies

    return whole
