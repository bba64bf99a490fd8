"""Time a run into its folder with random weights: what is left of `qvg generate` without its start.

    python -m scripts.bench.command --backend self-forcing --pixel-frames 81 357 --out build/results/command

The same plan, loop, writer, joining and reports as the command's; reading weights and encoding the prompt are
left out. Each length is made once for the kernels' compiling (--warm-up), then with the decoder after the
model and with the decoder beside it, in turn. Prints seconds, where they went and the device's memory, and
whether both have made the same files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from qvg_cli.config.load import Request
from qvg_cli.console import Console
from qvg_cli.device import resolve_device
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import plan_jobs
from qvg_cli.files import RunDir
from qvg_cli.models.offload import Offload
from qvg_cli.models.registry import load_config
from qvg_cli.runs.make import make_video
from qvg_cli.runs.run import Run
from scripts.full_size import PIPELINES
from scripts.random_models import FULL, TINY, RandomModels

_FIGURES = ("total", "first_frame", "model", "vae", "writing", "idle")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make every video, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=sorted(PIPELINES), default="self-forcing")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--pixel-frames", type=int, nargs="+", default=[81])
    parser.add_argument("--warm-up", type=int, metavar="N", help="first a video of so many pixel frames")
    parser.add_argument("--decoder", nargs="+", choices=("after", "beside"), default=["after", "beside"])
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the figures")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    weights = options.out / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "random.txt").write_text("random weights\n", encoding="utf-8")
    layout = {"full": FULL, "tiny": TINY}[options.size][options.backend]
    sets = [f"model.weights={weights.resolve()}", f"device={options.device}", *layout.sets, *options.sets]
    request = Request(backend=options.backend, sets=sets)
    config = load_config(request).config
    device = resolve_device(config.device)
    models = RandomModels(config, layout, device)
    engine = Engine(config, PIPELINES[options.backend](config, models), device, request)
    _ = models.transformer, models.vae
    if options.warm_up:
        _make(engine, request, options.warm_up, options.out)
    rows = []
    for count in options.pixel_frames:
        for arm in options.decoder:
            with patch.object(Offload, "is_resident", device.type == "cuda" and arm == "beside"):
                figures = _make(engine, request, count, options.out)
            rows.append({"backend": options.backend, "decoder": arm, **figures})
            path = options.out / f"{options.backend}.json"
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    return 0


def _make(engine: Engine, request: Request, num_pixel_frames: int, out: Path) -> dict[str, Any]:
    """The figures of one run, whose folder stays."""
    notes: list[str] = []
    (video,) = plan_jobs(request, notes.append, frames=num_pixel_frames)
    folder = RunDir.create(out, video.config.backend, f"{num_pixel_frames}")
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(engine.device)
    began = time.perf_counter()
    run = Run(video, folder, engine.device, notes.append)
    make_video(run, engine, Console(is_quiet=True))
    seconds = time.perf_counter() - began
    figures = run.figures()
    is_gpu = engine.device.type == "cuda"
    return {
        "pixel_frames": figures["pixel_frames"],
        "command_seconds": round(seconds, 2),
        "times": figures["times"],
        "chunk_seconds": json.loads(folder.memory.read_text(encoding="utf-8"))["chunk_seconds"],
        "device_peak_bytes": figures["device_peak_bytes"],
        "device_reserved_bytes": torch.cuda.max_memory_reserved(engine.device) if is_gpu else None,
        "latents": hashlib.sha256(folder.latents.read_bytes()).hexdigest()[:12],
        "video": hashlib.sha256(folder.video.read_bytes()).hexdigest()[:12],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a run."""
    memory = ("peak MiB", "reserved MiB")
    names = ("backend", "frames", "decoder", "seconds", *_FIGURES, *memory, "latents", "video")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        held = [
            "" if row[name] is None else f"{row[name] / 2**20:,.0f}"
            for name in ("device_peak_bytes", "device_reserved_bytes")
        ]
        cells = [row["backend"], row["pixel_frames"], row["decoder"], f"{row['command_seconds']:.2f}"]
        cells += [f"{row['times'][name]:.2f}" for name in _FIGURES]
        lines.append("| " + " | ".join(map(str, [*cells, *held, row["latents"], row["video"]])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
