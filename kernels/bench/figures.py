"""The fidelity bench's rows as a markdown table, the default's gains over the paper's scheme, and a plot."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

DEFAULT = "int2"
PAPER = "int2-qvg"
MEASURES = ("bits", "key_db", "value_db", "sharp_db", "diffuse_db", "key_gain", "value_gain")


@dataclass(frozen=True)
class Row:
    """What one preset lost on one span.

    Attributes:
        preset: Its name.
        source: Level of the synthetic data, or "recorded".
        tokens: Of the span.
        bits: Stored bits a value, mean of keys and values.
        key_db: Relative error of the keys.
        value_db: Relative error of the values.
        sharp_db: Error of attention's output with logits up to about 8.
        diffuse_db: The same with logits up to about 3.
        key_gain: Part of the keys' deviation from their mean that is kept; 1 is unbiased.
        value_gain: The same for values.
    """

    preset: str
    source: str
    tokens: int
    bits: float
    key_db: float
    value_db: float
    sharp_db: float
    diffuse_db: float
    key_gain: float
    value_gain: float


def mean_rows(rows: list[Row]) -> list[Row]:
    """One row a cell (preset, source, tokens), the mean of its samples, in the order they first came."""
    cells: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row.preset, row.source, row.tokens].append(row)
    return [
        dataclasses.replace(
            cell[0], **{name: statistics.fmean(getattr(row, name) for row in cell) for name in MEASURES}
        )
        for cell in cells.values()
    ]


def write_table(rows: list[Row]) -> str:
    """Markdown: a table for each source and span, then what the default gains over the paper's scheme."""
    cells: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in mean_rows(rows):
        cells[row.source, row.tokens].append(row)
    lines = []
    for (source, tokens), cell in cells.items():
        lines += [
            f"\n{source}, spans of {tokens:,} tokens\n",
            "| preset | bits | K error dB | V error dB | attention sharp dB | diffuse dB | K gain | V gain |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in sorted(cell, key=lambda row: row.sharp_db):
            errors = " | ".join(
                f"{error:.2f}" for error in (row.key_db, row.value_db, row.sharp_db, row.diffuse_db)
            )
            lines.append(
                f"| {row.preset} | {row.bits:.3f} | {errors} | {row.key_gain:.3f} | {row.value_gain:.3f} |"
            )
    return "\n".join(lines + _gains(cells)) + "\n"


def _gains(cells: dict[tuple[str, int], list[Row]]) -> list[str]:
    lines = [
        f"\nError of {DEFAULT} below that of {PAPER}, dB\n",
        f"| data | tokens | bits {DEFAULT} / {PAPER} | K | V | attention sharp | attention diffuse |",
        "|---|---|---|---|---|---|---|",
    ]
    attention: list[float] = []
    for (source, tokens), cell in cells.items():
        # A preset's label may carry knobs after a colon.
        by_name = {row.preset.partition(":")[0]: row for row in cell}
        if DEFAULT not in by_name or PAPER not in by_name:
            return []
        ours, theirs = by_name[DEFAULT], by_name[PAPER]
        gains = [
            getattr(theirs, name) - getattr(ours, name)
            for name in ("key_db", "value_db", "sharp_db", "diffuse_db")
        ]
        attention += gains[2:]
        figures = " | ".join(f"{figure:.1f}" for figure in gains)
        lines.append(f"| {source} | {tokens:,} | {ours.bits:.3f} / {theirs.bits:.3f} | {figures} |")
    lines.append(
        f"\nAttention: at least {min(attention):.1f} dB in every cell, "
        f"{statistics.fmean(attention):.1f} dB on average."
    )
    return lines


def write_plot(rows: list[Row], path: Path) -> None:
    """Error of attention's output against bits: a panel a source, both kinds of logits, the longest span."""
    longest = max(row.tokens for row in rows)
    means = [row for row in mean_rows(rows) if row.tokens == longest]
    sources = list(dict.fromkeys(row.source for row in means))
    kinds = (("sharp_db", "logits to 8"), ("diffuse_db", "logits to 3"))
    figure, axes = pyplot.subplots(
        len(kinds), len(sources), figsize=(4.6 * len(sources), 7.5), sharex=True, squeeze=False
    )
    for column, source in enumerate(sources):
        panel = [row for row in means if row.source == source]
        for axis, (measure, label) in zip(axes[:, column], kinds, strict=True):
            axis.set_title(f"{source}, {label}")
            _draw_panel(axis, [(row.preset, row.bits, getattr(row, measure)) for row in panel])
        axes[-1, column].set_xlabel(f"bits a value, spans of {longest:,} tokens")
    for axis in axes[:, 0]:
        axis.set_ylabel("error of attention's output, dB")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw_panel(axis: pyplot.Axes, points: list[tuple[str, float, float]]) -> None:
    """Points with names, and the line of those that no other beats in both bits and error."""
    best = [
        (bits, error)
        for _, bits, error in sorted(points, key=lambda point: point[1:])
        if not any(other <= bits and lower < error for _, other, lower in points)
    ]
    axis.plot(*zip(*best, strict=True), color="0.7", linewidth=1, zorder=0)
    for name, bits, error in points:
        colour = "tab:red" if "qvg" in name else "tab:green" if (bits, error) in best else "tab:grey"
        axis.scatter([bits], [error], s=22, color=colour)
        axis.annotate(name, (bits, error), textcoords="offset points", xytext=(4, 3), fontsize=7)
    # Room for the names at the right.
    axis.margins(x=0.2)
    axis.grid(alpha=0.3)
