"""What a person reads: notes, progress and errors on stderr. Only data for programs goes to stdout.

Every line is understood without colour; progress is a bar on a terminal and a line per chunk elsewhere.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from logging import getLogger
from typing import TYPE_CHECKING, TextIO

import typer

from qvg_cli.errors import QvgError
from qvg_cli.logs import SAID
from qvg_cli.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.live import Live
    from rich.table import Table


_LOG = getLogger(SAID)


class Progress:
    """Says nothing of how far a video is; others show it."""

    def step(self) -> None:
        """A model call has ended."""

    def chunk_done(self, status: str) -> None:
        """A chunk has ended; `status` tells how the run goes."""


class Console:
    """Where a command talks to a person; a quiet one shows errors alone."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet

    def note(self, text: str) -> None:
        """A line that a person may want to know."""
        _LOG.info("%s", text)
        if not self._is_quiet:
            _tell(visible(redact(text)))

    def show_secret(self, text: str) -> None:
        """A line with a secret that this person needs: on the terminal whatever was asked for, in no log."""
        _tell(visible(text))

    @contextmanager
    def progress(self, calls: Sequence[int], num_done: int = 0) -> Iterator[Progress]:
        """Progress of one video, by the model calls of each chunk, after those that were made before."""
        if self._is_quiet:
            yield Progress()
            return
        from rich.console import Console as RichConsole

        rich_console = RichConsole(stderr=True, highlight=False)
        if rich_console.is_jupyter:
            yield _NotebookBar(calls, num_done)
        elif rich_console.is_terminal and not rich_console.is_dumb_terminal:
            with _Bar(rich_console, calls, num_done) as bar:
                yield bar
        else:
            yield _Lines(self, len(calls), num_done)

    def live(self) -> Live | None:
        """Lines that change in their place on a terminal, while nothing else is shown; `None` elsewhere."""
        from rich.console import Console as RichConsole
        from rich.live import Live

        rich_console = RichConsole(stderr=True, highlight=False, markup=False)
        if self._is_quiet or not rich_console.is_terminal or rich_console.is_dumb_terminal:
            return None
        live = Live(console=rich_console, redirect_stdout=False, redirect_stderr=False, transient=True)
        live.start()
        return live


def show_error(message: str, hint: str | None = None) -> None:
    """What went wrong and, after an empty line, what to do about it."""
    _tell(f"error: {visible(redact(message))}")
    if hint:
        _tell(f"\nhint: {visible(redact(hint))}")


def _tell(text: str) -> None:
    """A line on stderr. One that cannot be shown ends no run."""
    try:
        typer.echo(text, err=True)
    except OSError:
        drop_stream(sys.stderr)


def drop_stream(stream: TextIO) -> None:
    """Let what is still to be written to a broken `stream` go nowhere, so that the interpreter's end does not
    trip over it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show_data(text: str, stdout: TextIO | None = None) -> None:
    """A result for a program, byte for byte; a terminal gets it without control characters.

    Args:
        stdout: The program's, where `sys.stdout` is another stream.
    """
    stdout = stdout or sys.stdout
    if stdout is None:
        # Closed by who started this: nobody waits for it.
        return
    try:
        shown = visible(text) if stdout.isatty() else text.encode(errors="surrogateescape")
        typer.echo(shown, file=stdout)
    except BrokenPipeError:
        # It has read enough, and what was made is on the disk.
        drop_stream(stdout)
    except OSError as error:
        drop_stream(stdout)
        raise QvgError(
            f"cannot write the result to stdout: {error.strerror}",
            hint="redirect stdout elsewhere; what was made is on disk",
        ) from error


def visible(text: str) -> str:
    """`text` with what would move a terminal's cursor or colour it, as from a file's name, written out."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )


class _Lines(Progress):
    def __init__(self, console: Console, num_chunks: int, num_done: int) -> None:
        self._console = console
        self._num_chunks = num_chunks
        self._num_done = self._num_before = num_done
        self._started = time.monotonic()

    def chunk_done(self, status: str) -> None:
        self._num_done += 1
        per_chunk = (time.monotonic() - self._started) / (self._num_done - self._num_before)
        left = timedelta(seconds=round(per_chunk * (self._num_chunks - self._num_done)))
        ahead = f", {left} left" if self._num_done < self._num_chunks else ""
        self._console.note(f"chunk {self._num_done}/{self._num_chunks}: {status}{ahead}")


class _Chunks(Progress):
    """Chunks and model calls of one video, as columns that are 60 wide at most, `texts` after these.

    A chunk counts by its model calls, so that the time left is known before the first one has ended.
    """

    def __init__(self, calls: Sequence[int], num_done: int, *texts: str) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.shown = Progress(
            TextColumn("chunk"),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[step]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            *map(TextColumn, texts),
        )
        self._calls = calls
        self._num_done = num_done
        self._step = 0
        self._task = self.shown.add_task("", total=len(calls), completed=num_done, step="", status="")

    def step(self) -> None:
        calls = self._calls[self._num_done]
        self._step += 1
        done = self._num_done + min(self._step / calls, 0.999)
        self.shown.update(self._task, completed=done, step=f"step {self._step}/{calls}")

    def chunk_done(self, status: str) -> None:
        self._step = 0
        self._num_done += 1
        self.shown.update(self._task, completed=self._num_done, step="", status=status)


class _Bar(_Chunks):
    """A bar that moves with every model call, and how the run goes on a line below."""

    def __init__(self, rich_console: RichConsole, calls: Sequence[int], num_done: int) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        super().__init__(calls, num_done)
        self._status = Text("", no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self.shown, self._status), console=rich_console, refresh_per_second=4)

    def __enter__(self) -> _Bar:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def chunk_done(self, status: str) -> None:
        super().chunk_done(status)
        self._status.plain = status


class _NotebookBar(_Chunks):
    """A bar in the output of a cell: one line that changes in its place."""

    def __init__(self, calls: Sequence[int], num_done: int) -> None:
        from IPython.display import display

        super().__init__(calls, num_done, "{task.fields[status]}")
        self._display = display(self._table(), display_id=True)  # type: ignore[no-untyped-call]

    def step(self) -> None:
        super().step()
        self._display.update(self._table())

    def chunk_done(self, status: str) -> None:
        super().chunk_done(status)
        self._display.update(self._table())

    def _table(self) -> Table:
        return self.shown.make_tasks_table(self.shown.tasks)
