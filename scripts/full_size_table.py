"""The figures of full-size runs as a Markdown table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_MIB = 2**20
_COLUMNS = (
    "run",
    "cache",
    "chunks",
    "transformer [s]",
    "last chunk [s]",
    "decoding a chunk [s]",
    "cache peak [MiB]",
    "BF16, same frames [MiB]",
    "times smaller",
    "cache end [MiB]",
    "device peak [MiB]",
    "reserved [MiB]",
)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """One row an arm; an arm without a whole chunk says why."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    for record in records:
        for arm in record["arms"]:
            lines.append("| " + " | ".join(_cells(record, arm)) + " |")
    return "\n".join(lines)


def fill_page(text: str, records: Sequence[Mapping[str, Any]]) -> str:
    """`text` with a table a backend between its marks.

    Raises:
        ValueError: The marks are missing.
    """
    parts = []
    for backend in dict.fromkeys(record["backend"] for record in records):
        mine = [record for record in records if record["backend"] == backend]
        commands = "\n".join(f"$ {record['command']}" for record in mine)
        where = sorted({f"{record['device']}, torch {record['versions']['torch']}" for record in mine})
        commits = sorted({record["commit"] for record in mine if record["commit"]})
        origin = "; ".join(where) + (f"; commit {', '.join(commits)}" if commits else "")
        parts.append(f"### {backend}\n\n{origin}.\n\n{table(mine)}\n\n```console\n{commands}\n```")
    joined = "\n\n".join(parts)
    filled, count = re.subn(
        r"(<!-- full_size -->\n).*?(<!-- end full_size -->)",
        lambda marks: f"{marks[1]}\n{joined}\n\n{marks[2]}",
        text,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"the page has {count} places for full_size; it needs one")
    return filled


def _cells(record: Mapping[str, Any], arm: Mapping[str, Any]) -> list[str]:
    chunks = [chunk for chunk in arm["chunks"] if not chunk.get("is_partial")]
    head = [_run(record, arm), arm["cache"]]
    if not chunks:
        calls = [seconds for chunk in arm["chunks"] for seconds in chunk["call_seconds"]]
        about = f"{arm['status']}; {len(calls)} calls" + (f", the last {calls[-1]:.2f} s" if calls else "")
        return [*head, about, *[""] * (len(_COLUMNS) - len(head) - 1)]
    summary, last = arm["summary"], chunks[-1]
    count = f"{len(chunks)}" if arm["status"] == "complete" else f"{len(chunks)} of {arm['num_chunks']}"
    return [
        *head,
        count if arm["status"] in ("complete", "running") else f"{count}, {arm['status'].partition(':')[0]}",
        f"{summary['transformer_seconds']:.1f}",
        f"{last['transformer_seconds']:.2f}",
        f"{last['decode_seconds']:.2f}" if record["decode"] else "",
        _mib(summary["peak"]["bytes"]),
        _mib(summary["peak"]["bf16_bytes"]),
        f"{summary['peak']['ratio']:.2f}" if summary["peak"]["ratio"] else "",
        _mib(summary["end"]["bytes"]),
        _mib(summary["device_peak_bytes"]),
        _mib(summary["device_reserved_bytes"]),
    ]


def _run(record: Mapping[str, Any], arm: Mapping[str, Any]) -> str:
    """What was run, in a few words."""
    parts = [f"{record['backend']} {record['height']}x{record['width']}"]
    if record["size"] != "full":
        parts.append(record["size"])
    if "latent_frames" in arm:
        parts.append(f"{arm['latent_frames']} latent frames")
    if record.get("done"):
        parts.append(f"after chunk {record['done']}")
    if record["context"]:
        parts.append(record["context"])
    if record["steps"] is not None:
        what = "steps of the base clip" if record["backend"] == "longcat" else "steps a chunk"
        parts.append(f"{record['steps']} {what}")
    if record.get("processes", 1) > 1:
        parts.append(f"{record['processes']} processes")
    if not record["decode"]:
        parts.append("not decoded")
    if record["memory_limit_gib"]:
        parts.append(f"limited to {record['memory_limit_gib']:g} GiB")
    return ", ".join([*parts, *record["sets"]])


def _mib(count: int | None) -> str:
    return "" if count is None else f"{count / _MIB:,.1f}"
