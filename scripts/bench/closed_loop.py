"""What a cache codec does to the finished video: the pocket model with every codec against BF16.

Tensor error alone misleads, because a video model feeds on its own output. All arms have the same prompts,
seed and noise and pack the same frames at the same time; frames are compared before lossy coding, in windows
of two seconds from the first chunk that reads packed history.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot
from pocket_runs import Arm, read_prompts, start_batch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.comparison.metrics import psnr, ssim
from qvg_cli.config.schema import RunConfig
from qvg_cli.planning.ledger import total

WINDOW_SECONDS = 2.0
BATCH = 4
# The k-means schemes get tables that bring them to the bits of int2 at the pocket's spans of 336 tokens.
DEFAULT_ARMS = (
    "int4",
    "int3",
    "int2:keep_recent_chunks=1",
    "int2:keep_sink=true",
    "int2",
    "int2-scalar",
    "int2-qvg:num_centroids=6",
    "int2-asym:num_centroids=6",
    "int2-lite",
    "trit",
    "kivi-int2",
    "quarot-int2",
    "turboquant-int2",
    "rtn-int2",
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


def make_videos(config: RunConfig, prompts: Sequence[str], device: str) -> ArmVideos:
    """Run one arm, `BATCH` prompts side by side, each batch with a seed of its own."""
    batches = [
        _make_batch(
            config.model_copy(update={"seed": config.seed + start}), prompts[start : start + BATCH], device
        )
        for start in range(0, len(prompts), BATCH)
    ]
    return replace(batches[0], frames=torch.cat([batch.frames for batch in batches]))


def _make_batch(config: RunConfig, prompts: Sequence[str], device: str) -> ArmVideos:
    batch = start_batch(config, prompts, device)
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


def compare(baseline: ArmVideos, arm: ArmVideos, fps: int) -> list[dict[str, float]]:
    """Mean PSNR and SSIM over prompts and frames of each window after packing begins.

    PSNR is the mean of per-prompt values, each from the mean squared error of its window's frames, so that a
    frame which happens to be equal does not make it infinite.
    """
    length = round(WINDOW_SECONDS * fps)
    windows = []
    for start in range(baseline.first_packed, baseline.frames.shape[1], length):
        window = slice(start, min(start + length, baseline.frames.shape[1]))
        pairs = list(zip(baseline.frames[:, window], arm.frames[:, window], strict=True))
        errors = torch.stack([10 ** (-psnr(*pair) / 10) for pair in pairs])
        windows.append(
            {
                "first_frame": window.start,
                "psnr_db": (-10 * torch.log10(errors.mean(dim=1).clamp_min(1e-10))).mean().item(),
                "ssim": torch.stack([ssim(*pair) for pair in pairs]).mean().item(),
            }
        )
    return windows


def write_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """PSNR per window of every arm, over the seconds since packing began."""
    figure, axes = pyplot.subplots(figsize=(10, 5))
    axes.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
    for row in rows:
        values = [window["psnr_db"] for window in row["windows"]]
        seconds = [WINDOW_SECONDS * (index + 0.5) for index in range(len(values))]
        axes.plot(seconds, values, marker="o", label=f"{row['arm']} ({row['bits']:.2f} bits)")
    axes.set_xlabel("seconds since the first chunk that read packed history")
    axes.set_ylabel("PSNR against the BF16 cache (dB)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def format_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, first window and whole video."""
    lines = [
        "| cache | bits a value | cache against BF16 | PSNR, first 2 s | SSIM, first 2 s | PSNR, last 2 s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        first, last = row["windows"][0], row["windows"][-1]
        lines.append(
            f"| {row['arm']} | {row['bits']:.2f} | {row['ratio']:.2f}x smaller | {first['psnr_db']:.2f} dB "
            f"| {first['ssim']:.4f} | {last['psnr_db']:.2f} dB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all arms, write closed_loop.json, .md and .png into the output folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the table, the figures and the plot"
    )
    parser.add_argument(
        "--arms", nargs="*", default=DEFAULT_ARMS, help="preset or preset:knob=value,knob=value"
    )
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--frames", type=int, default=24, help="latent frames of each video")
    parser.add_argument("--span-tokens", type=int, default=1, help="tokens that wait to become one span")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of the model: auto, float32 or bfloat16")
    options = parser.parse_args()

    common = (
        f"video.frames={options.frames}",
        f"seed={options.seed}",
        f"cache.span_tokens={options.span_tokens}",
        f"model.dtype={options.dtype}",
    )
    prompts = read_prompts(options.prompts)
    baseline_config = Arm.parse("bf16").config(common)
    baseline = make_videos(baseline_config, prompts, options.device)
    rows: list[dict[str, Any]] = []
    options.out.mkdir(parents=True, exist_ok=True)
    for arm in map(Arm.parse, options.arms):
        videos = make_videos(arm.config(common), prompts, options.device)
        windows = compare(baseline, videos, baseline_config.video.fps)
        rows.append({"arm": arm.label, "bits": videos.bits, "ratio": videos.ratio, "windows": windows})
        print(format_table(rows[-1:]).splitlines()[-1], flush=True)
        # After every arm, so that a run that is stopped leaves what it has.
        report = {"options": {**vars(options), "out": str(options.out)}, "prompts": prompts, "arms": rows}
        (options.out / "closed_loop.json").write_text(json.dumps(report, indent=1))
        (options.out / "closed_loop.md").write_text(format_table(rows) + "\n")
        write_plot(rows, options.out / "closed_loop.png")


if __name__ == "__main__":
    main()
