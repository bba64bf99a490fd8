"""How a batch goes: a line a worker and one for all, and a gallery page that loads itself anew. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvg_cli.batch.manifest import Manifest, Row
from qvg_cli.batch.store import Store
from qvg_cli.console import Console
from qvg_cli.errors import UsageError
from qvg_cli.files import write_text
from qvg_cli.report.html import gallery_line, gallery_page
from qvg_cli.report.run_files import find_results, read_result

if TYPE_CHECKING:
    from rich.live import Live

PAGE = "index.html"
_RELOAD_SECONDS = 10
_PAGE_SHARE = 20
"""The page is written at most for one part in so many of the time."""


class View:
    """What is shown of a batch while it is made: `manifest` gets every line, `show` that of a whole video."""

    def __init__(
        self, store: Store, manifest: Manifest, console: Console, show: Callable[[Row], None]
    ) -> None:
        self._store, self._manifest, self._console, self._show = store, manifest, console, show
        self._workers: dict[str, str] = {}
        self._live: Live | None = None
        # An address has no page: its videos are not on this machine.
        self._unseen = [] if store.is_address else find_results(store.root)[::-1]
        self._lines: dict[Path, dict[str, Any]] = {}
        self._next_page = 0.0

    def __enter__(self) -> View:
        self._live = self._console.live()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._unseen or self._lines:
            while self._unseen:
                self._see()
            self._write_page(None)

    def hear(self, row: Row) -> None:
        """Take in a line of a job, or how far a video is; an empty row: time has passed."""
        if "chunk" in row:
            self._workers[row["worker"]] = f"{row['folder']}, chunk {row['chunk']} of {row['chunks']}"
        elif row:
            self._manifest.add(row)
            if self._live is None:
                self._hear_job(row)
            else:
                self._live.stop()
                self._hear_job(row)
                # Begun anew, it does not take the lines above for its own.
                self._live = self._console.live()
        if self._live is not None:
            workers = [f"{worker}: {does}" for worker, does in sorted(self._workers.items())]
            self._live.update("\n".join([*workers, self._manifest.line()]))
        if self._unseen:
            self._see()
            if time.monotonic() > self._next_page:
                self._write_page(_RELOAD_SECONDS)

    def _hear_job(self, row: Row) -> None:
        status, worker = row["status"], row.get("worker", "")
        # Who made it before has died.
        self._workers = {name: does for name, does in self._workers.items() if row["folder"] not in does}
        self._workers[worker] = f"{row['folder']}, try {row['tries']}" if status == "running" else "waits"
        if status == "complete":
            self._show({**row, "folder": f"{self._store.place}/{row['folder']}"})
            if not self._store.is_address:
                self._unseen.append(self._store.root / row["folder"])
        if status == "running" and row["tries"] > 1:
            self._console.note(f"{row['folder']}: try {row['tries']}, on {worker}")
        elif status != "running":
            told = f": {row['error']}" if "error" in row else ""
            self._console.note(f"{row['folder']} {status} on {worker}{told}; {self._manifest.line()}")

    def _see(self) -> None:
        """Take one result into the page; one at a time keeps nobody waiting."""
        folder = self._unseen.pop(0)
        # One that went on is the newest.
        self._lines.pop(folder, None)
        # What else lies in the folder may be broken.
        with suppress(UsageError):
            self._lines[folder] = gallery_line(self._store.root, read_result(folder))

    def _write_page(self, reload_seconds: int | None) -> None:
        started = time.monotonic()
        page = gallery_page(self._store.root, [*self._lines.values()][::-1], reload_seconds=reload_seconds)
        write_text(self._store.root / PAGE, page, errors="backslashreplace")
        ended = time.monotonic()
        self._next_page = ended + max(_RELOAD_SECONDS / 2, _PAGE_SHARE * (ended - started))
