"""What has become of each job of a batch: manifest.jsonl, a line an event, and a summary. No torch."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qvg_cli.batch.store import Store
from qvg_cli.errors import UsageError

MANIFEST, SUMMARY = "manifest.jsonl", "summary.json"
SCHEMA = 1
Row = Mapping[str, Any]
_MOVE_SECONDS = 10.0
"""A file at an address is written anew for a line; not more often than this."""


class Status:
    """What the lines of a manifest say; the last line of a job counts, one that was cut off does not."""

    def __init__(self, text: str = "", place: str = "FOLDER") -> None:
        self._place = place
        self._start: Row | None = None
        self._jobs: dict[str, Row] = {}
        self._last = 0.0
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            self.take(row)

    def take(self, row: Row) -> None:
        """Take in a line: of a job, or of a start, after which all that is not complete waits again."""
        self._last = row["time"]
        if "id" in row:
            self._jobs[row["id"]] = row
        elif row["schema"] > SCHEMA:
            raise UsageError(f"the manifest has schema {row['schema']}, from a newer qvg", hint="update qvg")
        else:
            self._start = row
            self._jobs = {each: job for each, job in self._jobs.items() if job["status"] == "complete"}

    @property
    def start(self) -> Row:
        """The last line of a start; `UsageError` if there is none."""
        if self._start is None:
            raise UsageError(
                f"no batch in {self._place}: {MANIFEST} is missing or empty",
                hint=f"use the --out of a batch; qvg batch PROMPTS --out {self._place} begins one",
            )
        return self._start

    def jobs(self, *statuses: str) -> list[Row]:
        """The last lines of those jobs of the last start that have one of the statuses."""
        found = (self._jobs.get(each) for each in self.start["ids"])
        return [job for job in found if job is not None and job["status"] in statuses]

    def is_complete(self, job: str) -> bool:
        """Whether a job has been made, in whatever start."""
        return job in self._jobs and self._jobs[job]["status"] == "complete"

    @property
    def seconds(self) -> float:
        """From the last start to the last line."""
        return float(self._last - self.start["time"])

    def count(self) -> dict[str, int]:
        counted = Counter(self._jobs.get(each, {}).get("status", "waiting") for each in self.start["ids"])
        return {name: counted[name] for name in ("complete", "failed", "running", "stopped", "waiting")}

    def line(self) -> str:
        """How far all are, at which rate, and how long the others take at that."""
        count, seconds = self.count(), self.seconds
        parts = [f"{count['complete']} of {len(self.start['ids'])} videos"]
        parts += [f"{count[name]} {name}" for name in ("failed", "running", "stopped") if count[name]]
        made = sum(job["time"] > self.start["time"] for job in self.jobs("complete"))
        if made and seconds:
            left = (count["running"] + count["waiting"]) * seconds / made
            parts.append(f"{3600 * made / seconds:.1f} per hour")
            parts += [f"{_duration(left)} left"] if left else []
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        count, left_out = self.count(), self.start["left_out"]
        is_whole = count["complete"] == len(self.start["ids"]) and not left_out
        return {
            "schema": SCHEMA,
            "status": "complete" if is_whole else "partial",
            "prompts": self.start["prompts"],
            "jobs": len(self.start["ids"]),
            **count,
            "seconds": round(self.seconds, 3),
            "failures": self.jobs("failed"),
            "left_out": left_out,
        }


class Manifest(Status):
    """The manifest of a batch that is made, after the lines of earlier starts; lines are only ever added."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._text = store.read(MANIFEST)
        self._moved = -_MOVE_SECONDS
        super().__init__(self._text, store.place)
        if self._text and not self._text.endswith("\n"):
            # The last line was cut off.
            self._write("\n")

    def begin(self, prompts: str, ids: Sequence[str], workers: int, left_out: Sequence[str]) -> None:
        about = {"prompts": prompts, "workers": workers, "left_out": left_out, "ids": ids}
        self.add({"schema": SCHEMA, **about})

    def add(self, row: Row) -> None:
        row = {"time": round(time.time(), 3), **row}
        self.take(row)
        self._write(json.dumps(row) + "\n")

    def end(self) -> None:
        self._move()
        self._store.write(SUMMARY, json.dumps(self.to_json(), indent=1) + "\n")

    def _write(self, text: str) -> None:
        self._text += text
        if not self._store.is_address:
            with (self._store.root / MANIFEST).open("a", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        elif time.monotonic() - self._moved >= _MOVE_SECONDS:
            self._move()

    def _move(self) -> None:
        if self._store.is_address:
            self._store.write(MANIFEST, self._text)
            self._moved = time.monotonic()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
