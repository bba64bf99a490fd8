"""Reading what runs and comparisons have left in their folders. No torch."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvg_cli.errors import UsageError
from qvg_cli.files import RunDir
from qvg_cli.text_files import read_text

MEMORY, COMPARISON = "memory.json", "compare.json"
_SCHEMAS = {MEMORY: 1, COMPARISON: 1}
"""The newest schema of each file that this version reads."""
_ABOUT = ("status", "backend", "model", "height", "width", "fps", "pixel_frames", "video_seconds")
_COSTS = ("peak", "end", "device_peak_bytes", "seconds", "frames_per_second", "chunk_seconds", "chunks")
_KEYS = {
    MEMORY: (*_ABOUT, "prompt", "seed", "cache", "device", *_COSTS),
    COMPARISON: (*_ABOUT, "compared", "arms", "videos"),
}
"""What every file of its kind has, so that a foreign or an early one is told from a whole one."""


@dataclass(frozen=True)
class Result:
    """A run or a comparison of runs, with the content of its memory.json or compare.json."""

    folder: Path
    file: str
    figures: Mapping[str, Any]

    @property
    def is_comparison(self) -> bool:
        return self.file == COMPARISON


def read_result(folder: Path) -> Result:
    """The run or the comparison in `folder`; `UsageError` if there is none that is whole, or too new."""
    for name in (COMPARISON, MEMORY):
        if (folder / name).is_file():
            return Result(folder, name, _read(folder / name))
    if (folder / "state").is_dir():
        raise UsageError(
            f"the run in {folder} is in progress, or was interrupted",
            hint=f"if it was interrupted, resume with: qvg generate --resume {shlex.quote(str(folder))}",
        )
    raise UsageError(
        f"{folder} is not the folder of a run: it has no {MEMORY}",
        hint="use the folder that contains video.mp4, e.g. results/self-forcing/NAME",
    )


def find_results(root: Path) -> list[Path]:
    """Folders with a run or a comparison below `root`, the newest first; not the runs of a comparison."""
    if not root.is_dir():
        raise UsageError(f"no folder {root}", hint="qvg generate creates results/ in the current folder")
    reports = [path for name in (COMPARISON, MEMORY) for path in root.rglob(name)]
    found = sorted(reports, key=lambda path: (path.stat().st_mtime, path), reverse=True)
    comparisons = {path.parent for path in found if path.name == COMPARISON}
    return [path.parent for path in found if comparisons.isdisjoint(path.parent.parents)]


def newest_file(folder: Path) -> float:
    """When the report of the run or the comparison in `folder` was written, in seconds of the clock."""
    reports = [folder / name for name in (COMPARISON, MEMORY)]
    return max(path.stat().st_mtime for path in reports if path.is_file())


def _read(path: Path) -> Mapping[str, Any]:
    try:
        figures = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is broken: {error}") from error
    schema = figures.get("schema") if isinstance(figures, dict) else None
    if not isinstance(schema, int):
        raise UsageError(f"{path} is not a report of qvg: it has no schema number")
    if schema > _SCHEMAS[path.name]:
        raise UsageError(
            f"{path} has schema {schema}, this qvg reads up to {_SCHEMAS[path.name]}", hint="update qvg"
        )
    for key in _KEYS[path.name]:
        if key not in figures:
            raise UsageError(f"{path} is incomplete: it has no {key}", hint="generate the run again")
    return figures


def is_finished(run: RunDir) -> bool:
    """Whether a run has made everything that it was to make."""
    if run.state.is_dir() or not run.memory.is_file():
        return False
    return bool(read_result(run.path).figures["status"] == "complete")
