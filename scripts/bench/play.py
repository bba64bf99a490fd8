"""Time what one who plays feels: from a key to the first frame, and chunk after chunk, by `Session.step`.

    python -m scripts.bench.play --backend hyworldplay --pocket --chunks 8
    python -m scripts.bench.play --backend hyworldplay --random full --chunks 12 --json play.json

Each chunk goes on with the next of some moves. Prints the seconds to the first frame and to the whole chunk
of each, and their medians after the first two chunks; in brackets the processor's seconds, of all cores
together, which other programs on the machine change less. `--random` makes weights of the published size, or
of a tiny one, on the device: no files are needed, and the picture is noise.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from qvg_cli.config.load import Request
from qvg_cli.device import resolve_device
from qvg_cli.engine.engine import Engine
from qvg_cli.models.registry import load_config
from scripts.full_size import PIPELINES
from scripts.random_models import FULL, TINY, RandomModels

_MOVES = ("w", "w", "left", "w", "right", "d", "w", "left")
_WARM_UPS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, and print the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="hyworldplay")
    parser.add_argument("--pocket", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--random", choices=("full", "tiny"), help="random weights of this size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)
    layout = {"full": FULL, "tiny": TINY}[options.random or "full"][options.backend]
    sets = [*(layout.sets if options.random else ()), *options.sets]
    request = Request(backend=options.backend, pocket=options.pocket, sets=sets)
    config = load_config(request).config
    device = resolve_device(config.device)
    if options.random:
        pipeline = PIPELINES[options.backend](config, RandomModels(config, layout, device))
        engine = Engine(config, pipeline, device, request)
    else:
        engine = Engine.load_config(config, device, request)
    session = engine.session(config.prompt)
    video = config.video
    print(f"{config.model.name}, {video.width} x {video.height}, cache {config.cache.preset}, {device}")
    firsts, wholes, num_frames = [], [], []
    for number in range(options.chunks):
        pose = None
        if session.viewmats is not None:
            # The start has a pose already.
            frames = config.sampler.frames_per_chunk - (number == 0)
            pose = f"{_MOVES[number % len(_MOVES)]}-{frames}"
        arrivals: list[tuple[float, float]] = []
        began = _now()
        chunk = session.step(pose=pose, on_frames=lambda frames, at=arrivals: at.append(_now()))
        firsts.append(_since(began, arrivals[0]))
        wholes.append(_since(began, _now()))
        num_frames.append(len(chunk.frames))
        print(
            f"chunk {number + 1}: first frame {_text(firsts[-1])}, {num_frames[-1]} frames "
            f"{_text(wholes[-1])}, load of the machine {os.getloadavg()[0]:.1f}"
        )
    steady = slice(min(_WARM_UPS, options.chunks - 1), None)
    rate = sum(num_frames[steady]) / sum(wall for wall, _ in wholes[steady])
    print(
        f"medians after chunk {steady.start}: first frame {_medians(firsts[steady])}, "
        f"chunk {_medians(wholes[steady])}; {rate:.1f} frames/s"
    )
    if device.type == "cuda":
        peak, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        print(f"device peak {peak / 2**20:,.0f} MiB, reserved {reserved / 2**20:,.0f} MiB")
    if options.json:
        chunks = [
            {"first_frame_seconds": first, "seconds": whole, "frames": count}
            for (first, _), (whole, _), count in zip(firsts, wholes, num_frames, strict=True)
        ]
        text = json.dumps({"frames_per_second": rate, "chunks": chunks}, indent=1) + "\n"
        options.json.write_text(text, encoding="utf-8")


def _now() -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    return time.perf_counter(), time.process_time()


def _since(began: tuple[float, float], ended: tuple[float, float]) -> tuple[float, float]:
    return ended[0] - began[0], ended[1] - began[1]


def _text(seconds: tuple[float, float]) -> str:
    return f"{seconds[0]:.2f} s ({seconds[1]:.2f} s)"


def _medians(times: list[tuple[float, float]]) -> str:
    return _text((median(wall for wall, _ in times), median(processor for _, processor in times)))


if __name__ == "__main__":
    main()
