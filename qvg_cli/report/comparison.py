"""compare.json: what every way of keeping the cache cost and lost beside the first. No torch.

The figures are built once, here; the table, the plots and the page read nothing else.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from qvg_cli.planning.ledger import root_mean_square
from qvg_cli.report.words import mib_text

SCHEMA = 1


def variant_costs(memories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What one variant held and how long it took, over the memory.json of its videos.

    Sizes are those of the fullest video, times are medians over all chunks, so that what only happens once,
    such as the first chunk's warming up, does not count.
    """
    device_peaks = [memory["device_peak_bytes"] for memory in memories]
    chunk_seconds = [memory["chunk_seconds"] for memory in memories]
    fullest = max(memories, key=lambda memory: int(memory["peak"]["bytes"]))
    return {
        "peak": max((memory["peak"] for memory in memories), key=lambda held: int(held["bytes"])),
        "end": max((memory["end"] for memory in memories), key=lambda held: int(held["bytes"])),
        "device_peak_bytes": None if None in device_peaks else max(device_peaks),
        "seconds_per_chunk": round(median(second for seconds in chunk_seconds for second in seconds), 4),
        "chunks": [
            {
                "chunk": chunk["chunk"],
                "pixel_frames": chunk["pixel_frames"],
                "end_bytes": chunk["end"]["bytes"],
                "bf16_end_bytes": chunk["end"]["bf16_bytes"],
                "seconds": round(median(seconds), 4),
            }
            for chunk, seconds in zip(fullest["chunks"], zip(*chunk_seconds, strict=True), strict=True)
        ],
    }


def with_baseline(variants: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The variants, each with its costs as parts of the first's."""
    costs = [
        {
            "peak_bytes": variant["peak"]["bytes"],
            "end_bytes": variant["end"]["bytes"],
            "device_peak_bytes": variant["device_peak_bytes"],
            "seconds_per_chunk": variant["seconds_per_chunk"],
        }
        for variant in variants
    ]
    return [
        {**variant, "of_baseline": {name: _part(cost, costs[0][name]) for name, cost in own.items()}}
        for variant, own in zip(variants, costs, strict=True)
    ]


def attention_losses(memories: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    """What packing by `name` does to attention, over the memory.json of the baseline's videos: in all, by
    chunk and by layer; `None` where it was not measured.
    """
    measured = [
        (chunk, layers)
        for memory in memories
        for chunk in memory["chunks"]
        if (layers := chunk.get("losses", {}).get(name))
    ]
    if not measured:
        return None
    every = [layer for _, layers in measured for layer in layers]
    by_chunk = {chunk["chunk"]: chunk["pixel_frames"] for chunk, _ in measured}
    return {
        **_mean_losses(every),
        "chunks": [
            {
                "chunk": index,
                "pixel_frames": pixel_frames,
                **_mean_losses(
                    [layer for chunk, layers in measured if chunk["chunk"] == index for layer in layers]
                ),
            }
            for index, pixel_frames in sorted(by_chunk.items())
        ],
        "layers": [
            {"layer": index, **_mean_losses([layer for layer in every if layer["layer"] == index])}
            for index in sorted({layer["layer"] for layer in every})
        ],
    }


def _mean_losses(layers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of what layers lose; of a root mean square the root of the mean square."""
    rms = root_mean_square(layer["logit_rms"] for layer in layers)
    others = ("logit_db", "token_shift", "attention_moved", "history_mass")
    return {
        "logit_rms": round(rms, 6),
        **{other: round(fmean(layer[other] for layer in layers), 6) for other in others},
    }


def _part(value: float | None, whole: float | None) -> float | None:
    return round(value / whole, 4) if value is not None and whole else None


def window_label(window: Mapping[str, Any], fps: int) -> str:
    """The time that a window covers, such as `2-4 s`."""
    start = window["first_frame"] / fps
    stop = start + window["num_frames"] / fps
    return f"{start:.3g}-{stop:.3g} s"


def frame_time(frame: int | None, fps: int) -> str:
    return "never" if frame is None else f"{frame / fps:.2f} s"


def db_text(psnr_db: float | None) -> str:
    """A PSNR in words; `None` stands for equal frames."""
    return "equal" if psnr_db is None else f"{psnr_db:.2f}"


def summary_lines(comparison: Mapping[str, Any]) -> list[str]:
    """What every variant but the baseline cost and lost, a sentence each."""
    baseline, *others = comparison["arms"]
    return [_summary(variant, baseline, comparison["fps"]) for variant in others]


def _summary(variant: Mapping[str, Any], baseline: Mapping[str, Any], fps: int) -> str:
    held, baseline_held = (mib_text(one["peak"]["bytes"]) for one in (variant, baseline))
    cost = f"{variant['name']} has a peak KV cache of {held} MiB, {baseline['name']} of {baseline_held} MiB"
    times = variant["of_baseline"]["seconds_per_chunk"]
    if times is not None:
        cost += f"; a chunk takes {times:.2f}x the time"
    quality = variant["quality"]
    different, diverged = quality["first_different_frame"], quality["first_diverged_frame"]
    if different is None:
        return f"{cost}. All frames are equal."
    under = "none falls below 30 dB"
    if diverged is not None:
        under = f"the first below 30 dB is at {frame_time(diverged, fps)}"
    figures = [f"{db_text(quality['psnr_db'])} dB", f"an SSIM of {quality['ssim']:.4f}"]
    if quality.get("lpips") is not None:
        figures.append(f"an LPIPS of {quality['lpips']:.4f}")
    return (
        f"{cost}. Its frames differ from {frame_time(different, fps)} on; {under}. "
        f"The whole video has {', '.join(figures[:-1])} and {figures[-1]}."
    )
