"""`--shard i/n`: one machine's part of a file of prompts, begun again as often as it takes. No torch."""

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from qvg_cli.config.load import Request
from qvg_cli.engine.jobs import Planned
from qvg_cli.errors import UsageError
from qvg_cli.files import RunDir, hold_lock, slug, write_text
from qvg_cli.models.registry import load_config
from qvg_cli.report.run_files import is_finished
from qvg_cli.runs.identity import are_settings_equal

SCHEMA = 1
Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """A part of a file of prompts, by its `index` from 1 to `count`."""

    file: Path
    index: int
    count: int

    @classmethod
    def parse(cls, text: str, file: Path | None) -> Self:
        """The part that `i/n` means; `UsageError` if it means none."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(
                f"--shard {text} is not a shard", hint="use i/n, e.g. --shard 2/4 for the second of four"
            )
        if file is None:
            raise UsageError("--shard needs --prompts", hint="a shard is a part of a prompt file")
        return cls(file, int(match[1]), int(match[2]))

    def take(self, items: Sequence[Item]) -> list[Item]:
        """Every `count`-th item, from the `index`-th on."""
        return list(items[self.index - 1 :: self.count])

    def manifest(self, folder: Path) -> Path:
        """The file that says what has become of the part, written when all of it was tried."""
        return folder / f"{slug(self.file.stem) or 'prompts'}-{self.index}-of-{self.count}.json"

    def hold(self, folder: Path) -> AbstractContextManager[None]:
        """Keep other processes from making this part in `folder`; `UsageError` if one is at it."""
        manifest = self.manifest(folder)
        busy = UsageError(
            f"another qvg process works on --shard {self.index}/{self.count} of {self.file} in {folder}",
            hint="wait for it, or use another shard or another --out",
        )
        return hold_lock(manifest.with_name(f".{manifest.stem}.lock"), busy)

    def write_manifest(
        self, folder: Path, videos: Sequence[dict[str, Any]], left_out: Sequence[Exception]
    ) -> None:
        """Say what has become of every video, and why lines are left out: every part names all of these."""
        status = "complete" if all(video["status"] == "complete" for video in videos) else "partial"
        content = {
            "schema": SCHEMA,
            "status": status,
            "prompts": str(self.file),
            "shard": self.index,
            "shards": self.count,
            "videos": list(videos),
            "left_out": [str(error) for error in left_out],
        }
        write_text(self.manifest(folder), json.dumps(content, indent=1) + "\n")


def find_begun(folder: Path, video: Planned) -> RunDir | None:
    """The run in `folder` that `video` was begun or made in; `None` if there is no such run."""
    pattern = re.compile(rf"{re.escape(video.name)}(-\d+)?")
    if not folder.is_dir():
        return None
    for path in sorted(folder.iterdir()):
        run = RunDir(path)
        if not pattern.fullmatch(path.name) or not run.config.is_file():
            continue
        try:
            config = load_config(Request(file=run.config)).config
            is_of_use = run.state.is_dir() or is_finished(run)
        except UsageError:
            continue
        if is_of_use and are_settings_equal(config, video.config):
            return run
    return None
