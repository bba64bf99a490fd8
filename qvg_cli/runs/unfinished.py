"""Runs that were cut off, and what lies around of them. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from qvg_cli.errors import QvgError
from qvg_cli.runs.folder import finish_removal, remove_folder

STATE, LOCK, IDENTITY = "state", "lock", "identity.json"


def find_states(root: Path) -> Iterator[Path]:
    """State folders of unfinished runs below `root`, and what was left of removed ones."""
    if not root.is_dir():
        return
    for path in sorted(root.rglob(IDENTITY)):
        if path.parent.name in (STATE, f".{STATE}.removed"):
            yield path.parent


def drop_state(folder: Path) -> None:
    """Remove a state: its run cannot go on then; what the run's folder holds beside it stays.

    Raises:
        QvgError: A process works on the run, or the folder cannot be written.
    """
    try:
        if folder.name != STATE:
            shutil.rmtree(folder)
            return
        with FileLock(folder / LOCK, timeout=0):
            remove_folder(folder)
        finish_removal(folder)
    except Timeout as error:
        raise QvgError(f"another qvg is at work on {folder.parent}", hint="stop it first") from error
    except OSError as error:
        raise QvgError(f"cannot remove {folder}: {error.strerror}") from error
