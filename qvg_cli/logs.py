"""What a developer reads: times and events, on stderr if asked for, and always in the run's own file.

What a person should know is said by the console. No secret is written.
"""

import logging
import os
import platform
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qvg_cli import __version__
from qvg_cli.errors import UsageError
from qvg_cli.redaction import redact

VARIABLE = "QVG_LOG"
LEVELS = ("debug", "info", "warning", "error")
SAID = "qvg_cli.said"
"""Logger of what the console has said, which stderr has already."""
_ROOT = "qvg_cli"
_MOST_RECENT = 200
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Recent(logging.Handler):
    """Keeps what happened before a run's file was there."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=_MOST_RECENT)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _File(logging.FileHandler):
    """A log that cannot be written does not end a run."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


_recent = _Recent()
_command_began = time.perf_counter()


def command_began() -> float:
    """When the command that is under way began, by `time.perf_counter`."""
    return _command_began


def set_up(*, is_verbose: bool) -> None:
    """Begin to log: to stderr what `QVG_LOG` asks for, or with --verbose everything from "info" on."""
    global _command_began
    _command_began = time.perf_counter()
    asked = os.environ.get(VARIABLE, "").strip().lower()
    if asked and asked not in LEVELS:
        raise UsageError(f"{VARIABLE}={asked} is not a log level", hint=f"known: {', '.join(LEVELS)}")
    logger = logging.getLogger(_ROOT)
    logger.propagate = False
    logger.setLevel(logging.DEBUG if asked == "debug" else logging.INFO)
    for handler in tuple(logger.handlers):
        logger.removeHandler(handler)
    _recent.records.clear()
    logger.addHandler(_recent)
    if asked or is_verbose:
        shown = logging.StreamHandler()
        shown.setLevel((asked or "info").upper())
        shown.setFormatter(_Formatter(_LINE, datefmt="%H:%M:%S"))
        shown.addFilter(lambda record: record.name != SAID)
        logger.addHandler(shown)
    logger.info("qvg %s, Python %s: %s", __version__, platform.python_version(), shlex.join(sys.argv[1:]))


@contextmanager
def run_log(path: Path) -> Iterator[None]:
    """Write what happens in the block, and what led to it, to the end of `path`."""
    try:
        handler = _File(path, encoding="utf-8", errors="backslashreplace")
    except OSError:
        yield
        return
    handler.setFormatter(_Formatter(_LINE))
    for record in _recent.records:
        handler.handle(record)
    _recent.records.clear()
    logger = logging.getLogger(_ROOT)
    logger.addHandler(handler)
    logger.removeHandler(_recent)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.addHandler(_recent)
        with suppress(OSError):
            handler.close()


@contextmanager
def timed(what: str, level: int = logging.INFO) -> Iterator[None]:
    """Log how long the block took, if it did not fail."""
    started = time.perf_counter()
    yield
    logging.getLogger(__name__).log(level, "%s: %.3f s", what, time.perf_counter() - started)
