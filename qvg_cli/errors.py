"""Errors that are shown to the user: what is wrong with which value, the limit, and what to do about it.

Everything below `main.py` raises; only `main.py` prints and exits.
"""

import errno
import sys
from collections.abc import Iterable
from difflib import get_close_matches

from qvg_cli.interrupts import Stopped

_DISK_HINTS = {
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space: your disk quota is used up",
    errno.EIO: "the disk or the terminal is gone",
    errno.EACCES: "permission denied; use another one, or change its permissions",
    errno.EPERM: "permission denied; use another one, or change its permissions",
    errno.EROFS: "it is read-only; use another folder",
    errno.ELOOP: "its symbolic links form a loop",
    errno.ENOTDIR: "a part of it is a file, not a folder",
    errno.EISDIR: "it is a folder; use a file",
}
"""What the machine refuses, and what a user can do; anything else would be a defect."""


class QvgError(Exception):
    """A failure while running; its text, and on a line of its own its hint what to do, are shown."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(QvgError):
    """A request that cannot be carried out as it was written; found before anything is loaded."""

    exit_code = 2


class BusyError(QvgError):
    """Another process works on the same run."""


class NoAnswerError(QvgError):
    """Another of the processes that make a video together has ended, or hangs."""


class MissingModelError(QvgError):
    """Weights or a helper program are not on this machine, or access to them was refused."""

    exit_code = 3


class OutOfMemoryError(QvgError):
    """The device has too little memory for the run."""

    exit_code = 4


class Interrupted(QvgError):
    """The user stopped the run; what was made until then is kept."""

    exit_code = 130


class Paused(Interrupted):
    """SIGTERM or SIGUSR1 stopped the run, as schedulers do; what was made is kept, and the run can go on."""

    exit_code = 75


def known_hint(name: object, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The names that are known, the one most like a wrong `name` in front."""
    names = tuple(known)
    near = get_close_matches(str(name), names, n=1, cutoff=cutoff)
    return f"{f'nearest: {near[0]}; ' if near else ''}known: {', '.join(names)}"


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UsageError:
    return UsageError(f"unknown {kind} {str(name)!r}", hint=known_hint(name, known))


def interruption(stop: BaseException, message: str, *, hint: str | None = None) -> Interrupted:
    """The error for a run that Ctrl-C or a signal has stopped."""
    return (Paused if isinstance(stop, Stopped) else Interrupted)(message, hint=hint)


def shown_error(error: BaseException) -> QvgError:
    if isinstance(error, QvgError):
        return error
    if is_out_of_memory(error):
        return OutOfMemoryError(
            "out of memory",
            hint="try a smaller --size, fewer --seconds, another --cache or --set memory.transformer=model",
        )
    if isinstance(error, KeyboardInterrupt):
        return interruption(error, f"stopped by {error}" if isinstance(error, Stopped) else "stopped")
    if isinstance(error, OSError) and error.errno in _DISK_HINTS:
        place = f" {error.filename}" if error.filename else ""
        message = f"cannot use{place}: {error.strerror}" if place else str(error.strerror)
        hint = _DISK_HINTS[error.errno]
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        return QvgError(message, hint=hint) if is_full else UsageError(message, hint=hint)
    return QvgError(
        f"{type(error).__name__}: {error}",
        hint="this is a bug in qvg; please report it with the output of the same command with --debug",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or the device had too little memory."""
    if isinstance(error, MemoryError | OutOfMemoryError):
        return True
    # A torch that nobody has imported has not run out of memory.
    torch = sys.modules.get("torch")
    is_allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return is_allocator or (torch is not None and isinstance(error, torch.OutOfMemoryError))
