"""A comparison under way: what it compares, in a file of its folder until it is complete. No torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qvg_cli.engine.jobs import Planned
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.files import write_text
from qvg_cli.models.registry import find_family, plan_video

BEGUN = "begun.json"
SCHEMA = 1


@dataclass(frozen=True)
class Begun:
    """Everything that a comparison makes.

    Attributes:
        names: Of the variants, the baseline's first.
        rows: For every prompt and seed the video of every variant.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[Planned, ...], ...]
    has_lpips: bool = False

    def write(self, folder: Path) -> None:
        """Keep it in the comparison's folder; `QvgError` if the file cannot be written."""
        rows = [
            [{"name": video.name, "config": video.config.model_dump(mode="json")} for video in row]
            for row in self.rows
        ]
        content = {"schema": SCHEMA, "names": self.names, "lpips": self.has_lpips, "rows": rows}
        write_text(folder / BEGUN, json.dumps(content, indent=1) + "\n")


def read_begun(folder: Path) -> Begun:
    """The comparison that was begun in `folder`; `UsageError` if there is none, or its file is broken."""
    path = folder / BEGUN
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']}")
        names = tuple(str(name) for name in content["names"])
        rows = tuple(tuple(_planned(video) for video in row) for row in content["rows"])
        if len(names) < 2 or not rows or any(len(row) != len(names) for row in rows):
            raise ValueError("it has no videos")
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} is not the folder of an unfinished comparison: it has no {BEGUN}",
            hint="use a folder that qvg compare has created, e.g. results/compare/NAME",
        ) from error
    except (OSError, ValueError, LookupError, TypeError, RecursionError, ValidationError, QvgError) as error:
        raise UsageError(f"{path} is broken: {error}", hint="run the comparison again") from error
    return Begun(names, rows, has_lpips=content.get("lpips") is True)


def _planned(video: dict[str, Any]) -> Planned:
    values = video["config"]
    family = find_family(values.get("family") or values["backend"])
    config = family.config_class.model_validate_json(json.dumps(values))
    return Planned(config, plan_video(config), str(video["name"]))
