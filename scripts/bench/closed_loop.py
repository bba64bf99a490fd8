"""What a cache codec does to the finished video: the pocket model with every codec against BF16.

    python scripts/bench/closed_loop.py --out build/results

Tensor error alone misleads, because a video model feeds on its own output. All arms have the same prompts,
seed and noise and pack the same frames at the same time; frames are compared before lossy coding, in windows
of two seconds from the first chunk that reads packed history. A preset that is not there is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot
from matplotlib.rcsetup import cycler
from pocket_runs import Arm, read_prompts, start_batch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.comparison.quality import psnr, ssim
from qvg_cli.config.resources import preset_names
from qvg_cli.config.schema import RunConfig
from qvg_cli.device import resolve_device
from qvg_cli.models.base import Pipeline
from qvg_cli.models.registry import load_pipeline
from qvg_cli.planning.ledger import total

WINDOW_SECONDS = 2.0
AGAINST = "int2"
# The k-means schemes get tables that bring them to the bits of int2 at the pocket's spans of 336 tokens.
DEFAULT_ARMS = (
    "int2",
    "int2-shaped",
    "trit",
    "trit-shaped",
    "bit1",
    "bit1-shaped",
    "bit1:num_centroids=2",
    "bit1-shaped:num_centroids=2",
    "quantwm-int2:num_centroids=6",
    "int2-qvg:num_centroids=6",
    "kivi-int2",
    "int4",
    "int3",
    "int2-scalar",
    "int2-asym:num_centroids=6",
    "int2-lite",
    "quarot-int2",
    "turboquant-int2",
    "rtn-int2",
    "int2:keep_recent_chunks=1",
    "int2:keep_sink=true",
)


@dataclass(frozen=True)
class ArmVideos:
    """What one arm made.

    Attributes:
        frames: `[B, n, height, width, 3]` uint8.
        first_packed: First pixel frame that was made from packed history.
        bits: Stored bits a value of the packed spans.
        ratio: BF16 bytes of the same frames over the payload, both at their peak.
    """

    frames: Tensor
    first_packed: int
    bits: float
    ratio: float


def make_videos(
    config: RunConfig, prompts: Sequence[str], batch: int, pipeline: Pipeline, device: torch.device
) -> ArmVideos:
    """Run one arm, `batch` prompts side by side, each batch with a seed of its own."""
    batches = [
        _make_batch(
            config.model_copy(update={"seed": config.seed + start}),
            prompts[start : start + batch],
            pipeline,
            device,
        )
        for start in range(0, len(prompts), batch)
    ]
    return replace(batches[0], frames=torch.cat([each.frames for each in batches]))


def _make_batch(
    config: RunConfig, prompts: Sequence[str], pipeline: Pipeline, device: torch.device
) -> ArmVideos:
    batch = start_batch(config, prompts, pipeline, device)
    frames: list[Tensor] = []
    first_packed = None
    packed: set[int] = set()
    peak, bf16_peak = 0, 0
    for result in batch.results:
        if first_packed is None and not packed.isdisjoint(result.chunk.reads):
            first_packed = sum(part.shape[1] for part in frames)
        packed.update(frame for block in batch.cache.plan.blocks if block.is_packed for frame in block.frames)
        frames.append(result.frames)
        peak = max(peak, total(result.memory.peak_bytes))
        bf16_peak = max(bf16_peak, result.memory.bf16_peak_bytes)
    if first_packed is None:
        raise SystemExit("no chunk read packed history: make the videos longer or cache.span_tokens smaller")
    return ArmVideos(torch.cat(frames, dim=1), first_packed, packed_bits(batch.cache), bf16_peak / peak)


def packed_bits(cache: KVCache) -> float:
    """Stored bits a value of all packed blocks that `cache` holds."""
    entries = [entry for layer in cache.layers for entry in layer.entries.values() if entry.block.is_packed]
    values = sum(math.prod(entry.key.shape) + math.prod(entry.value.shape) for entry in entries)
    return 8 * sum(total(entry.payload_bytes()) for entry in entries) / values


def compare(baseline: ArmVideos, arm: ArmVideos, fps: int, device: torch.device) -> list[dict[str, Any]]:
    """PSNR and SSIM of each prompt in each window after packing begins.

    A PSNR is that of the mean squared error of a window's frames, so that a frame which happens to be equal
    does not make it infinite; equal windows count as 100 dB.
    """
    length = round(WINDOW_SECONDS * fps)
    windows = []
    for start in range(baseline.first_packed, baseline.frames.shape[1], length):
        window = slice(start, min(start + length, baseline.frames.shape[1]))
        pairs = [
            (one.to(device), other.to(device))
            for one, other in zip(baseline.frames[:, window], arm.frames[:, window], strict=True)
        ]
        errors = torch.stack([(10 ** (-psnr(*pair) / 10)).mean() for pair in pairs])
        windows.append(
            {
                "first_frame": window.start,
                "psnr_db": (-10 * torch.log10(errors.clamp_min(1e-10))).tolist(),
                "ssim": [ssim(*pair).mean().item() for pair in pairs],
            }
        )
    return windows


def paired(arm: Sequence[float], other: Sequence[float]) -> tuple[float, float, int]:
    """How far an arm lies above another, by prompt: mean, standard error, and how often it does."""
    differences = [one - two for one, two in zip(arm, other, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return statistics.fmean(differences), error, sum(difference > 0 for difference in differences)


def write_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """PSNR per window of every arm, over the seconds since packing began; named as the lines end."""
    figure, axes = pyplot.subplots(figsize=(10, 5))
    axes.set_prop_cycle(cycler(linestyle=["-", ":"]) * cycler(color=pyplot.get_cmap("tab20").colors))
    for row in sorted(rows, key=lambda row: -statistics.fmean(row["windows"][-1]["psnr_db"])):
        values = [statistics.fmean(window["psnr_db"]) for window in row["windows"]]
        seconds = [WINDOW_SECONDS * (index + 0.5) for index in range(len(values))]
        axes.plot(seconds, values, marker="o", label=f"{row['arm']} ({row['bits']:.2f} bits)")
    axes.set_xlabel("seconds since the first chunk that read packed history")
    axes.set_ylabel("PSNR against the BF16 cache (dB)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, first window and last, and what each arm gains over `AGAINST` in the first."""
    other = next((row for row in rows if row["arm"] == AGAINST), None)
    lines = [
        "| cache | bits a value | cache against BF16 | PSNR, first 2 s | SSIM, first 2 s "
        f"| PSNR, last 2 s | first 2 s against {AGAINST}, by prompt |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first, last = row["windows"][0], row["windows"][-1]
        gain = "-"
        if other is not None and other is not row:
            mean, error, wins = paired(first["psnr_db"], other["windows"][0]["psnr_db"])
            gain = f"{mean:+.2f} ± {error:.2f} dB, {wins} of {len(first['psnr_db'])} above"
        lines.append(
            f"| {row['arm']} | {row['bits']:.2f} | {row['ratio']:.2f}x smaller "
            f"| {statistics.fmean(first['psnr_db']):.2f} dB | {statistics.fmean(first['ssim']):.4f} "
            f"| {statistics.fmean(last['psnr_db']):.2f} dB | {gain} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all arms, write closed_loop.json, .md and .png into the output folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the table, the figures and the plot")
    add("--arms", nargs="*", default=DEFAULT_ARMS, help="preset or preset:knob=value,knob=value")
    add("--prompts", type=int, default=20)
    add("--first-prompt", type=int, default=0, help="of those in prompts.txt")
    add("--batch", type=int, default=4, help="prompts that are made side by side")
    add("--frames", type=int, default=24, help="latent frames of each video")
    add("--span-tokens", type=int, default=1, help="tokens that wait to become one span")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--dtype", default="auto", help="of the model: auto, float32 or bfloat16")
    add("--seconds", type=float, default=math.inf, help="begin no arm after so long")
    add("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="as in qvg generate")
    options = parser.parse_args()

    common = (
        f"video.frames={options.frames}",
        f"seed={options.seed}",
        f"cache.span_tokens={options.span_tokens}",
        f"model.dtype={options.dtype}",
        *options.sets,
    )
    started = time.perf_counter()
    prompts = read_prompts(options.first_prompt + options.prompts)[options.first_prompt :]
    config = Arm.parse("bf16").config(common)
    device = resolve_device(options.device)
    pipeline = load_pipeline(config, device)
    baseline = make_videos(config, prompts, options.batch, pipeline, device)
    rows: list[dict[str, Any]] = []
    options.out.mkdir(parents=True, exist_ok=True)
    for arm in map(Arm.parse, options.arms):
        if arm.preset not in preset_names() or time.perf_counter() - started > options.seconds:
            print(f"{arm.label}: left out", flush=True)
            continue
        videos = make_videos(arm.config(common), prompts, options.batch, pipeline, device)
        windows = compare(baseline, videos, config.video.fps, device)
        rows.append({"arm": arm.label, "bits": videos.bits, "ratio": videos.ratio, "windows": windows})
        print(format_table(rows).splitlines()[-1], f"{time.perf_counter() - started:.0f} s", flush=True)
        # After every arm, so that a run that is stopped leaves what it has.
        about = {"device": str(device), "torch": torch.__version__, "prompts": prompts}
        report = {"options": {**vars(options), "out": str(options.out)}, **about, "arms": rows}
        (options.out / "closed_loop.json").write_text(json.dumps(report, indent=1))
        (options.out / "closed_loop.md").write_text(format_table(rows) + "\n")
    write_plot(rows, options.out / "closed_loop.png")


if __name__ == "__main__":
    main()
