"""The line between the two processes of one video: messages from the first to the second, rows both ways.

Messages are Python objects and go through CPU memory; rows go from device to device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from qvg_cli.engine.launch import Launch
from qvg_cli.errors import QvgError, is_out_of_memory

Result = TypeVar("Result")
_FOREVER = timedelta(days=7)
"""One process waits while the other makes pixels; that this one has ended is told in the store."""
_END = "qvg/end"


class Channel:
    """One end of the line; comes back when the other end is there too.

    Args:
        store: See `open_store`.

    Attributes:
        is_idle: Whether the second process waits for a message, as far as the first knows.
    """

    def __init__(self, store: Store, launch: Launch) -> None:
        self.is_idle = True
        self._rank = launch.rank
        dist.init_process_group(
            "gloo", store=store, rank=launch.rank, world_size=launch.num_processes, timeout=_FOREVER
        )
        self._rows: dist.ProcessGroup | None = None

    def connect(self, device: torch.device) -> None:
        """Prepare the exchange of rows that are on `device` here, and on one of its kind there.

        Comes back when the other end does so too.
        """
        backend = "nccl" if device.type == "cuda" else "gloo"
        self._rows = dist.new_group(backend=backend, timeout=_FOREVER)

    def share(self, message: object, work: Callable[[], Result]) -> Result:
        """Let the second process do what `message` says while `work` is done here.

        Raises:
            QvgError: The second process still waits for its row of something that has failed here.
        """
        if not self.is_idle:
            raise QvgError("the second process is still in a video that has failed", hint="start anew")
        self.is_idle = False
        with _talking():
            dist.broadcast_object_list([message], src=0)
        result = work()
        self.is_idle = True
        return result

    def receive(self) -> Any:
        """The next message of the first process."""
        messages: list[Any] = [None]
        with _talking():
            dist.broadcast_object_list(messages, src=0)
        return messages[0]

    def compute(self, predict: Callable[[slice], Tensor], num_rows: int) -> Tensor:
        """See `Rows.compute`: one row here, one there, and both get both."""
        assert num_rows == 2
        own = predict(slice(self._rank, self._rank + 1)).contiguous()
        both = [torch.empty_like(own), torch.empty_like(own)]
        with _talking():
            dist.all_gather(both, own, group=self._rows)
        return torch.cat(both)

    def close(self) -> None:
        """Take leave of the other end, which does the same."""
        dist.destroy_process_group()


@contextmanager
def _talking() -> Iterator[None]:
    """Say what it means that the other end does not answer."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        first, *_ = str(error).splitlines()
        raise QvgError(
            f"the line to the other process is cut: {first}", hint="it has failed or was ended; see above"
        ) from error


def open_store() -> Store:
    """A line to where the processes of torchrun meet; that place is torchrun's, and outlives them."""
    store: Store
    store, _, _ = next(iter(rendezvous("env://")))
    return store


def say_end(store: Store) -> None:
    """Let the second process know that the first one ends, whatever either is doing."""
    store.set(_END, "")


def wait_for_end(store: Store) -> None:
    """Come back when the first process ends.

    Args:
        store: A line that nobody else uses meanwhile: who waits on it keeps others from it.
    """
    store.wait([_END], _FOREVER)
