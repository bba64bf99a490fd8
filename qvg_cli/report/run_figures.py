"""What a finished run or comparison has to say, as rows of text for the terminal and the pages. No torch."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from qvg_cli.planning.ledger import by_layer, root_mean_square
from qvg_cli.report.comparison import db_text
from qvg_cli.report.run_files import Result
from qvg_cli.report.words import describe_bytes, mib_text, processes_text, short_prompt

CHUNK_HEADER = ("chunk", "frames", "KV cache MiB", "BF16 MiB", "GPU peak MiB", "seconds", "logit rms")


def title_of(figures: Mapping[str, Any]) -> str:
    """A line that tells one result from another."""
    if "arms" not in figures:
        return short_prompt(str(figures["prompt"]))
    others = ", ".join(variant["name"] for variant in figures["arms"][1:])
    prompt = short_prompt(str(figures["videos"][0]["prompt"]))
    return f"{others} vs {figures['arms'][0]['name']}: {prompt}"


def result_rows(result: Result) -> list[tuple[str, str]]:
    """Names and figures of a run, or of a comparison, in a few lines."""
    figures = result.figures
    size, count = f"{figures['width']} x {figures['height']}", figures["pixel_frames"]
    video = f"{size}, {count} frames at {figures['fps']} fps, {figures['video_seconds']:.2f} s"
    rows = [
        ("status", figures["status"]),
        ("model", f"{figures['model']}, {figures['backend']}"),
        ("video", video),
    ]
    # Results of version 0.1 do not say it.
    if (decoder := figures.get("decoder", "vae")) != "vae":
        rows.append(("decoder", decoder))
    return rows + (_comparison_rows(figures) if result.is_comparison else _run_rows(figures))


def short_rows(result: Result) -> list[tuple[str, str]]:
    """The figures by which results are told apart where many of them are listed."""
    left_out = {"model", "contents", "final KV cache", "GPU peak", "per process", "compared"}
    if result.figures["status"] == "complete":
        left_out.add("status")
    return [row for row in result_rows(result) if row[0] not in left_out]


def chunk_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for chunk, seconds in zip(figures["chunks"], figures["chunk_seconds"], strict=True):
        end, peak, logits = chunk["end"], chunk["device_peak_bytes"], chunk.get("predicted_logit_rms")
        rows.append(
            [
                str(chunk["chunk"] + 1),
                str(chunk["pixel_frames"]),
                mib_text(end["bytes"]),
                mib_text(end["bf16_bytes"]),
                "-" if peak is None else mib_text(peak),
                f"{seconds:.2f}",
                f"{root_mean_square(by_layer(logits).values()):.4f}" if logits else "-",
            ]
        )
    return rows


def logit_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """Number of every layer of a run, and the error of its logits; empty if it was not predicted."""
    known: dict[int, list[float]] = {}
    for chunk in figures["chunks"]:
        for layer, value in by_layer(chunk.get("predicted_logit_rms", {})).items():
            known.setdefault(layer, []).append(value)
    return [[str(layer), f"{root_mean_square(known[layer]):.4f}"] for layer in sorted(known)]


def _run_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    peak, end = figures["peak"], figures["end"]
    device_peak, processes = figures["device_peak_bytes"], figures.get("processes")
    kinds = ", ".join(f"{kind} {mib_text(count)}" for kind, count in peak["kinds"].items())
    chunk_seconds, logit_rms = median(figures["chunk_seconds"]), figures.get("predicted_logit_rms")
    return [
        ("seed", str(figures["seed"])),
        ("cache", figures["cache"]),
        ("peak KV cache", f"{describe_bytes(peak['bytes'], peak['bf16_bytes'])}, chunk {peak['chunk'] + 1}"),
        ("contents", f"{kinds} MiB" if kinds else "nothing"),
        ("final KV cache", describe_bytes(end["bytes"], end["bf16_bytes"])),
        ("GPU peak", "-" if device_peak is None else f"{mib_text(device_peak)} MiB"),
        *([("per process", processes_text(processes))] if processes else []),
        (
            "time",
            f"{figures['seconds']:.1f} s on {figures['device']}, "
            f"{figures['frames_per_second']:.1f} fps, {chunk_seconds:.3g} s per chunk",
        ),
        *([("logits", f"an error of {logit_rms:.4f} nats rms is predicted")] if logit_rms else []),
    ]


def _comparison_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("compared", figures["compared"])]
    for variant in figures["arms"]:
        said = describe_bytes(variant["peak"]["bytes"], variant["peak"]["bf16_bytes"])
        if (quality := variant["quality"]) is not None:
            psnr_db = quality["psnr_db"]
            said += "; equal frames" if psnr_db is None else f"; {db_text(psnr_db)} dB"
        rows.append((variant["name"], said))
    return rows
