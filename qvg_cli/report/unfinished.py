"""Runs and comparisons that are under way or were cut off, before they have a report. No torch."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qvg_cli.config.load import Request
from qvg_cli.errors import UsageError
from qvg_cli.files import LOCK, STATE, find_states
from qvg_cli.models.registry import load_config, plan_video
from qvg_cli.report.run_files import COMPARISON, MEMORY
from qvg_cli.report.words import short_prompt

BEGUN = "begun.json"


@dataclass(frozen=True)
class Unfinished:
    """What is known of a run, or of a comparison, without a report; chunks are counted of a run alone."""

    folder: Path
    prompt: str | None
    num_chunks: int | None
    num_planned: int | None
    is_running: bool

    @property
    def suggestion(self) -> str:
        command = "qvg generate" if self.num_chunks is not None else "qvg compare"
        return f"resume with: {command} --resume {shlex.quote(str(self.folder))}"

    def line(self) -> str:
        state = "is in progress" if self.is_running else "was interrupted"
        what = "comparison" if self.num_chunks is None else "run"
        planned = "" if self.num_planned is None else f" of {self.num_planned}"
        done = "" if self.num_chunks is None else f", {self.num_chunks}{planned} chunks are complete"
        shown = "" if self.prompt is None else f": {short_prompt(self.prompt)!r}"
        suggestion = "" if self.is_running else f"; {self.suggestion}"
        return f"the {what} in {self.folder} {state}{done}{shown}{suggestion}"

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "status": "running" if self.is_running else "cut off",
            "prompt": self.prompt,
            "chunks": self.num_chunks,
            "planned_chunks": self.num_planned,
        }


def find_unfinished(root: Path) -> list[Unfinished]:
    """Those below `root`, the newest first; the runs of a comparison are its own."""
    begun = (path for path in root.rglob(BEGUN) if not (path.parent / COMPARISON).is_file())
    comparisons = {path.parent: path.stat().st_mtime for path in begun}
    found = []
    for state in find_states(root):
        folder = state.parent
        owner = next((parent for parent in folder.parents if parent in comparisons), None)
        if owner is not None:
            comparisons[owner] = max(comparisons[owner], state.stat().st_mtime)
        elif state.name == STATE and not (folder / MEMORY).is_file():
            found.append((state.stat().st_mtime, folder))
    found += [(when, folder) for folder, when in comparisons.items()]
    return [read_unfinished(folder) for _, folder in sorted(found, reverse=True)]


def read_unfinished(folder: Path) -> Unfinished:
    """What is known of the run or the comparison in `folder`."""
    if not (folder / STATE).is_dir():
        locks = folder.rglob(f"{STATE}/{LOCK}")
        return Unfinished(folder, None, None, None, is_running=any(map(_is_locked, locks)))
    prompt, num_planned = None, None
    try:
        config = load_config(Request(file=folder / "run.yaml")).config
        prompt, num_planned = config.prompt, len(plan_video(config).chunks)
    except UsageError:
        # The state says that there is a run, whatever has become of its settings.
        pass
    # A chunk counts once its record is there, which is written last.
    num_chunks = sum(path.stem.isdecimal() for path in (folder / STATE).glob("*.json"))
    return Unfinished(folder, prompt, num_chunks, num_planned, is_running=_is_locked(folder / STATE / LOCK))


def is_unfinished(folder: Path) -> bool:
    """Whether there is a run or a comparison without a report in `folder`."""
    if any((folder / name).is_file() for name in (MEMORY, COMPARISON)):
        return False
    return (folder / STATE).is_dir() or (folder / BEGUN).is_file()


def modified(unfinished: Unfinished) -> float:
    """When something was last written to it, in seconds of the clock."""
    places = [unfinished.folder, *unfinished.folder.rglob(STATE)]
    return max(place.stat().st_mtime for place in places)


def _is_locked(lock: Path) -> bool:
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        # A folder that can only be read: nobody can work on it from here.
        return False
