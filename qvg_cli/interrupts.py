"""Ctrl-C, SIGTERM and SIGUSR1 at a moment that suits the files: work that must not be cut in half ends first.

Ctrl-C stops at once. SIGTERM, which schedulers and `kill` send, stops at the next denoising step while a
video is made, and at once elsewhere. SIGUSR1 lets the chunk in hand be finished first. What has come to its
end by then is complete, and no signal makes it less.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGUSR1 asks for an end; the run may go on later, so that its exit code is another one."""


class _Asked:
    """The signal that is still to be followed, how many blocks choose the moment, and the one followed."""

    number: int | None = None
    num_waiting = 0
    followed: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 raise `Stopped` in the block, as Ctrl-C raises `KeyboardInterrupt`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Asked.followed = None
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    previous = [signal.signal(number, _ask) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
        _Asked.number = None


def _ask(number: int, frame: FrameType | None) -> None:
    # Who has asked for an end soon does not get a later one by a second signal.
    if _Asked.number != signal.SIGTERM:
        _Asked.number = number
    if not _Asked.num_waiting:
        stop_if_asked()


def ask_to_stop(number: int) -> None:
    """Let the next `stop_if_asked` of any thread follow the signal `number`, as if it had come."""
    _Asked.number = number


def stop_if_asked(*, in_chunk: bool = False) -> None:
    """Follow a signal that has waited for this moment, by a `Stopped`; SIGUSR1 lets a chunk in hand end."""
    number = _Asked.number
    if number is None or (in_chunk and number != signal.SIGTERM):
        return
    _Asked.number, _Asked.followed = None, number
    raise Stopped(signal.Signals(number).name)


def last_stop() -> Stopped | None:
    """What was raised since the last `stop_on_signals` began; a library may have made its own error of it."""
    return None if _Asked.followed is None else Stopped(signal.Signals(_Asked.followed).name)


@contextmanager
def choose_moments() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 wait in the block for `stop_if_asked`; after it they go on waiting."""
    _Asked.num_waiting += 1
    try:
        yield
    finally:
        _Asked.num_waiting -= 1


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended; it is raised then, unless the block failed.

    SIGTERM and SIGUSR1 wait too, and then for the next `stop_if_asked`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        held.append(number)

    previous = signal.signal(signal.SIGINT, remember)
    try:
        with choose_moments():
            yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held:
        raise KeyboardInterrupt
