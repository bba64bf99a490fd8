"""Ctrl-C at a moment that suits the files: work that must not be cut in half is finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended; it is raised then, unless the block failed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        held.append(number)

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held:
        raise KeyboardInterrupt
