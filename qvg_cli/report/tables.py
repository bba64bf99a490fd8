"""Tables of plain text, as wide as the terminal, that need no colour. No torch."""

import io
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from qvg_cli.report.comparison import db_text, frame_time, window_label
from qvg_cli.report.words import mib_text

COST_HEADER = ("cache", "peak MiB", "compression", "final MiB", "GPU peak MiB", "s/chunk")
ATTENTION_HEADER = ("cache", "logit rms", "logits dB", "token shift", "moved", "history mass")
_MAX_WINDOWS = 5
_WIDTH, _LEAST_WIDTH = 80, 60
"""Columns where the output is no terminal, and of the narrowest one that a table is fitted to."""


def terminal_width() -> int:
    """Columns that a line may take; COLUMNS wins over the terminal."""
    return max(_LEAST_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """Columns side by side, all but the first and those of `left` to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)
    for index, title in enumerate(header):
        table.add_column(Text(title), justify="left" if index in (0, *left) else "right", overflow="fold")
    for row in rows:
        # Not plain strings: brackets would be taken for markup.
        table.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, width=terminal_width(), color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def format_facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and what is said of them, a line each; long ones go on under themselves."""
    indent = 2 + max(len(name) for name, _ in rows)
    lines = []
    for name, value in rows:
        lines += textwrap.wrap(
            f"{name:<{indent}}{value}", terminal_width(), subsequent_indent=" " * indent, drop_whitespace=True
        )
    return "\n".join(lines)


def comparison_tables(comparison: Mapping[str, Any]) -> str:
    variants, fps = comparison["arms"], comparison["fps"]
    baseline = variants[0]["name"]
    costs = format_table(COST_HEADER, cost_rows(variants))
    losses = format_table(quality_header(variants), quality_rows(variants, fps))
    count = len(comparison["videos"])
    videos = "1 video" if count == 1 else f"mean of {count} videos"
    blocks = [
        f"KV cache and time (in brackets: relative to {baseline}):\n{costs}",
        f"Frames compared with {baseline}, {videos}:\n{losses}",
    ]
    if has_attention(variants):
        table = format_table(ATTENTION_HEADER, attention_rows(variants))
        blocks.append(f"Attention to packed keys, by queries of {baseline}:\n{table}")
    windows = variants[-1]["quality"]["windows"]
    if len(windows) > 1:
        shown = spread(len(windows), _MAX_WINDOWS)
        every = "" if len(shown) == len(windows) else f" ({len(shown)} of {len(windows)} windows)"
        titles = {"psnr_db": "PSNR [dB]", "ssim": "SSIM", "lpips": "LPIPS"}
        for name, title in titles.items():
            if name != "lpips" or has_lpips(variants):
                table = _window_table(variants, fps, shown, name)
                blocks.append(f"{title} by time{every}:\n{table}")
    return "\n\n".join(blocks)


def cost_rows(variants: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Cells of the costs; in brackets, how many times the baseline's a figure is."""
    rows = []
    for variant in variants:
        times = {} if variant is variants[0] else variant["of_baseline"]
        ratio, device_peak = variant["peak"]["ratio"], variant["device_peak_bytes"]
        peak = "-" if device_peak is None else mib_text(device_peak)
        rows.append(
            [
                variant["name"],
                _beside(mib_text(variant["peak"]["bytes"]), times.get("peak_bytes")),
                "-" if ratio is None else f"{ratio:.2f}x",
                mib_text(variant["end"]["bytes"]),
                _beside(peak, times.get("device_peak_bytes")),
                _beside(f"{variant['seconds_per_chunk']:.3g}", times.get("seconds_per_chunk")),
            ]
        )
    return rows


def has_attention(variants: Sequence[Mapping[str, Any]]) -> bool:
    """Whether anything says what packing does to attention: the baseline's keys were exact."""
    return any(variant.get("attention") for variant in variants)


def attention_rows(variants: Sequence[Mapping[str, Any]], layer: int | None = None) -> list[list[str]]:
    """Cells of what packing does to attention, in all layers or in one, of the variants where it is known."""
    rows = []
    for variant in variants:
        if losses := variant.get("attention"):
            of = losses if layer is None else next(one for one in losses["layers"] if one["layer"] == layer)
            shares = [f"{100 * of[name]:.2f} %" for name in ("token_shift", "attention_moved")]
            mass = f"{100 * of['history_mass']:+.2f} %"
            rows.append([variant["name"], f"{of['logit_rms']:.4f}", f"{of['logit_db']:.2f}", *shares, mass])
    return rows


def layer_rows(variants: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The same by layer, whose number comes first; empty where it is not known."""
    measured = [variant["attention"]["layers"] for variant in variants if variant.get("attention")]
    numbers = [one["layer"] for one in measured[0]] if measured else []
    return [[str(number), *row] for number in numbers for row in attention_rows(variants, number)]


def has_lpips(variants: Sequence[Mapping[str, Any]]) -> bool:
    """Whether LPIPS was measured; reports of versions without it do not name it."""
    return variants[-1]["quality"].get("lpips") is not None


def quality_header(variants: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    lpips = ("LPIPS",) if has_lpips(variants) else ()
    return ("cache", "PSNR dB", "SSIM", *lpips, "first differing frame", "first frame below 30 dB")


def quality_rows(variants: Sequence[Mapping[str, Any]], fps: int) -> list[list[str]]:
    """Cells of the losses of all variants but the baseline."""
    rows = []
    for variant in variants[1:]:
        quality = variant["quality"]
        lpips = [f"{quality['lpips']:.4f}"] if has_lpips(variants) else []
        times = [frame_time(quality[f"first_{kind}_frame"], fps) for kind in ("different", "diverged")]
        rows.append([variant["name"], db_text(quality["psnr_db"]), f"{quality['ssim']:.4f}", *lpips, *times])
    return rows


def _window_table(variants: Sequence[Mapping[str, Any]], fps: int, shown: Sequence[int], name: str) -> str:
    first = variants[-1]["quality"]["windows"]
    header = ["cache", *(window_label(first[index], fps) for index in shown)]
    rows = []
    for variant in variants[1:]:
        values = [variant["quality"]["windows"][index][name] for index in shown]
        texts = [db_text(value) if name == "psnr_db" else f"{value:.4f}" for value in values]
        rows.append([variant["name"], *texts])
    return format_table(header, rows)


def _beside(text: str, times: float | None) -> str:
    return text if times is None else f"{text} ({times:.2f}x)"


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]
