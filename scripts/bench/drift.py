"""Does a long video of the pocket model drift? Colours and repetition over time, by positions and windows.

    python -m scripts.bench.drift --seconds 60 --out build/results/drift

The scenes of the pocket model are periodic, so a video that does not drift comes back to what it has shown:
of each frame, the PSNR to the nearest frame of the first five seconds. Beside it the mean of each colour and
the spread of values, second by second, and their distance from the first five. Writes drift.json and
drift.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qvg_cli.engine.engine import Engine
from qvg_cli.plotting import new_figure
from qvg_cli.video.io import Frames

_FIRST_SECONDS = 5
_WINDOW = 12
RULES: dict[str, dict[str, Any]] = {
    "window 21, sink 3, absolute (as it comes)": {},
    "window 12, absolute": {"sampler.window": _WINDOW, "sampler.sink": 0},
    "window 12, sink 3, absolute": {"sampler.window": _WINDOW, "sampler.sink": 3},
    "window 12, compact": {"sampler.window": _WINDOW, "sampler.sink": 0, "sampler.position_span": _WINDOW},
    "window 12, sink 3, compact": {
        "sampler.window": _WINDOW,
        "sampler.sink": 3,
        "sampler.position_span": _WINDOW,
    },
}
"""Settings of each; compact positions are those within the window."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the videos, and write what they do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of figures and plot")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cache", default="bf16")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    engine = Engine.load("self-forcing", pocket=True, cache=options.cache)
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, settings in RULES.items():
        videos = [
            engine.generate(seconds=options.seconds, seed=seed, settings=settings)
            for seed in range(options.seeds)
        ]
        measured = [measure(video.frames, video.fps, engine.device) for video in videos]
        curves[name] = [mean_of(second) for second in zip(*measured, strict=True)]
        last = curves[name][-1]
        print(f"{name}: {last['psnr_db']:.1f} dB, colours {last['color_distance']:.2f} levels from the first")
        path = options.out / "drift.json"
        path.write_text(json.dumps({"cache": options.cache, "seconds": curves}, indent=1) + "\n", "utf-8")
    plot(curves, options.out / "drift.png")


def measure(frames: Frames, fps: int, device: torch.device) -> list[dict[str, float]]:
    """Figures of each whole second of `[n, height, width, 3]` frames."""
    pixels = torch.from_numpy(frames).to(device, torch.float32).flatten(1)
    first = pixels[: _FIRST_SECONDS * fps]
    colors = pixels.unflatten(1, (-1, 3))
    means, spread = colors.mean(1), colors.std(1).mean(1)
    known = means[: len(first)].mean(0)
    rows = []
    for begin in range(0, len(frames) - fps + 1, fps):
        part = slice(begin, begin + fps)
        # Mean square from the norms and the product; float64 keeps the difference.
        errors = torch.cdist(pixels[part].double(), first.double()).square().amin(1) / pixels.shape[1]
        psnr = 10 * torch.log10(255**2 / errors.clamp(min=1e-2))
        red, green, blue = means[part].mean(0).tolist()
        distance = (means[part].mean(0) - known).norm().item()
        rows.append(
            {"psnr_db": psnr.mean().item(), "red": red, "green": green, "blue": blue}
            | {"spread": spread[part].mean().item(), "color_distance": distance}
        )
    return rows


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure."""
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def plot(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Repetition and colours over the seconds."""
    with new_figure(9, 4, dpi=120) as figure:
        axes = figure.subplots(1, 2)
        for name, rows in curves.items():
            for place, key in zip(axes, ("psnr_db", "color_distance"), strict=True):
                # Without a sink both positions give the same frames.
                style = "--" if "compact" in name else "-"
                place.plot(np.arange(1, len(rows) + 1), [row[key] for row in rows], style, label=name)
        axes[0].set_ylabel("PSNR to the nearest of the first 5 s [dB]")
        axes[1].set_ylabel("mean colour, distance from the first 5 s [levels]")
        for place in axes:
            place.set_xlabel("video time [s]")
            place.grid(alpha=0.3)
        axes[0].legend(frameon=False, fontsize=8)
        figure.savefig(path, format="png")


if __name__ == "__main__":
    main()
