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
    rows = [
        ("status", figures["status"]),
        ("model", f"{figures['model']}, {figures['backend']}"),
        (
            "video",
            f"{figures['width']} x {figures['height']}, {figures['pixel_frames']} frames at "
            f"{figures['fps']} fps, {figures['video_seconds']:.2f} s",
        ),
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
    return [
        [
            str(chunk["chunk"] + 1),
            str(chunk["pixel_frames"]),
            mib_text(chunk["end"]["bytes"]),
            mib_text(chunk["end"]["bf16_bytes"]),
            "-" if chunk["device_peak_bytes"] is None else mib_text(chunk["device_peak_bytes"]),
            f"{seconds:.2f}",
            f"{root_mean_square(by_layer(logits).values()):.4f}"
            if (logits := chunk.get("predicted_logit_rms"))
            else "-",
        ]
        for chunk, seconds in zip(figures["chunks"], figures["chunk_seconds"], strict=True)
    ]


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
        quality = variant["quality"]
        if quality is not None:
            said += (
                f"; {db_text(quality['psnr_db'])} dB" if quality["psnr_db"] is not None else "; equal frames"
            )
        rows.append((variant["name"], said))
    return rows
