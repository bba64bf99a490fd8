"""Ten minutes of the pocket model through an open session: does a chunk cost the same from first to last?

    python -m scripts.bench.long_video --out build/results/long

A window, a sink and positions within a span make the history as long after ten minutes as after ten seconds.
Prints, for each tenth of the video, the median seconds a chunk, the largest cache and what the process and
the GPU held at its end, and writes them to long_video.json with a line a chunk. Frames go into long_video.mp4
as they come. Ctrl-C ends it with what there is. What grows by right are the latents of the whole video, which
a later pass may read again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from qvg_cli.engine.engine import Engine
from qvg_cli.engine.session import Session
from qvg_cli.planning.ledger import total
from qvg_cli.video.io import VideoWriter

_TENTHS = 10
_MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the video, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures and the video")
    parser.add_argument("--seconds", type=float, default=600.0, help="of video")
    parser.add_argument("--window", type=int, default=12, help="latent frames in view, with the chunk's own")
    parser.add_argument("--sink", type=int, default=3)
    parser.add_argument("--cache", default="int2")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = make_video(options)
    tenths = [_summary(rows[begin:end]) for begin, end in _parts(len(rows))]
    record = {
        "command": shlex.join(["python", "-m", "scripts.bench.long_video", *(arguments or sys.argv[1:])]),
        "device": torch.cuda.get_device_name() if rows[0]["device_bytes"] is not None else platform.machine(),
        "torch": torch.__version__,
        "tenths": tenths,
        "chunks": rows,
    }
    path = options.out / "long_video.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(tenths))
    return 0


def make_video(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of every chunk."""
    sets = {
        "sampler.window": options.window,
        "sampler.sink": options.sink,
        "sampler.position_span": options.window,
    }
    engine = Engine.load(
        "self-forcing", pocket=True, cache=options.cache, device=options.device, settings=sets
    )
    session, video = engine.session(), engine.config.video
    writer = VideoWriter(
        options.out / "long_video.mp4", height=video.height, width=video.width, fps=video.fps
    )
    rows: list[dict[str, Any]] = []
    with suppress(KeyboardInterrupt):
        _step_through(session, options.seconds * video.fps, engine.device, rows, writer)
    writer.finish()
    return rows


def _step_through(
    session: Session, num_frames: float, device: torch.device, rows: list[dict[str, Any]], writer: VideoWriter
) -> None:
    """Make chunks until there are so many frames; a row is added for each."""
    while session.num_frames < num_frames:
        began = time.perf_counter()
        chunk = session.step()
        rows.append(
            {
                "pixel_frames": session.num_frames,
                "seconds": round(time.perf_counter() - began, 4),
                "cache_bytes": total(chunk.memory.peak_bytes),
                "host_bytes": _resident_bytes(),
                "device_bytes": torch.cuda.memory_allocated(device) if device.type == "cuda" else None,
            }
        )
        writer.write(chunk.frames)


def table(tenths: Sequence[Mapping[str, Any]]) -> str:
    """A line a tenth of the video."""
    lines = [
        "| up to frame | seconds a chunk | cache [MiB] | process [MiB] | GPU [MiB] |",
        "|---|---|---|---|---|",
    ]
    for tenth in tenths:
        device = "" if tenth["device_bytes"] is None else f"{tenth['device_bytes'] / _MIB:,.1f}"
        lines.append(
            f"| {tenth['pixel_frames']:,} | {tenth['seconds']:.3f} | {tenth['cache_bytes'] / _MIB:,.2f} | "
            f"{tenth['host_bytes'] / _MIB:,.0f} | {device} |"
        )
    return "\n".join(lines)


def _parts(count: int) -> list[tuple[int, int]]:
    """Where each tenth of `count` chunks begins and ends; fewer parts if there are fewer chunks."""
    edges = sorted({round(count * part / _TENTHS) for part in range(_TENTHS + 1)})
    return list(pairwise(edges))


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **rows[-1],
        "seconds": round(median(row["seconds"] for row in rows), 4),
        "cache_bytes": max(row["cache_bytes"] for row in rows),
    }


def _resident_bytes() -> int:
    """What the process holds of the machine's memory now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
