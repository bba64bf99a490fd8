"""What a person reads: notes, progress and errors on stderr. Only data for programs goes to stdout.

Every line is understood without colour; progress is a bar on a terminal and a line a chunk elsewhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import TYPE_CHECKING, Protocol, TextIO

import typer

from qvg_cli.errors import QvgError
from qvg_cli.logs import SAID
from qvg_cli.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.live import Live
    from rich.progress import Progress as RichProgress
    from rich.table import Table


_LOG = getLogger(SAID)


class Progress(Protocol):
    """Shows how far a video is."""

    def step(self) -> None:
        """A model call has ended."""
        ...

    def chunk_done(self, status: str) -> None:
        """A chunk has ended; `status` tells how the run goes."""
        ...


class Console:
    """Where a command talks to a person.

    Args:
        is_quiet: Only errors are shown.
    """

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
    def progress(self, num_chunks: int, num_done: int = 0) -> Iterator[Progress]:
        """Progress of one video of which `num_done` chunks are there already."""
        if self._is_quiet:
            yield _Silent()
            return
        from rich.console import Console as RichConsole

        rich_console = RichConsole(stderr=True, highlight=False)
        if rich_console.is_jupyter:
            yield _NotebookBar(num_chunks, num_done)
        elif rich_console.is_terminal and not rich_console.is_dumb_terminal:
            with _Bar(rich_console, num_chunks, num_done) as bar:
                yield bar
        else:
            yield _Lines(self, num_chunks, num_done)

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

    Raises:
        QvgError: It cannot be written; what was made is on the disk.
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
            hint="what was made is on the disk; send stdout elsewhere",
        ) from error


def visible(text: str) -> str:
    """`text` with what would move a terminal's cursor or colour it, as from a file's name, written out."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )


class _Silent:
    def step(self) -> None:
        pass

    def chunk_done(self, status: str) -> None:
        pass


class _Lines:
    """One line a chunk."""

    def __init__(self, console: Console, num_chunks: int, num_done: int) -> None:
        self._console = console
        self._num_chunks = num_chunks
        self._num_done = num_done

    def step(self) -> None:
        pass

    def chunk_done(self, status: str) -> None:
        self._num_done += 1
        self._console.note(f"chunk {self._num_done}/{self._num_chunks}: {status}")


def _chunk_progress(*texts: str) -> RichProgress:
    """Chunks, model calls and time; `texts` are columns after these."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("chunk"),
        MofNCompleteColumn(),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(),
        *map(TextColumn, texts),
    )


class _Bar:
    """A bar that moves with every chunk, a count of model calls, and how the run goes on a line below."""

    def __init__(self, rich_console: RichConsole, num_chunks: int, num_done: int) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        self._progress = _chunk_progress()
        self._task = self._progress.add_task("", total=num_chunks, completed=num_done, step="step 0")
        self._status = Text("", no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._progress, self._status), console=rich_console, refresh_per_second=4)
        self._step = 0

    def __enter__(self) -> _Bar:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def step(self) -> None:
        self._step += 1
        self._progress.update(self._task, step=f"step {self._step}")

    def chunk_done(self, status: str) -> None:
        self._step = 0
        self._progress.update(self._task, advance=1, step="")
        self._status.plain = status


class _NotebookBar:
    """A bar in the output of a cell: one line that changes in its place."""

    def __init__(self, num_chunks: int, num_done: int) -> None:
        from IPython.display import display

        self._progress = _chunk_progress("{task.fields[status]}")
        self._task = self._progress.add_task("", total=num_chunks, completed=num_done, step="", status="")
        self._step = 0
        self._shown = display(self._table(), display_id=True)  # type: ignore[no-untyped-call]

    def step(self) -> None:
        self._step += 1
        self._progress.update(self._task, step=f"step {self._step}")
        self._shown.update(self._table())

    def chunk_done(self, status: str) -> None:
        self._step = 0
        self._progress.update(self._task, advance=1, step="", status=status)
        self._shown.update(self._table())

    def _table(self) -> Table:
        return self._progress.make_tasks_table(self._progress.tasks)
