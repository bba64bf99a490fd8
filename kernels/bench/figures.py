"""The fidelity bench's rows as markdown tables, what presets gain over others, and a plot."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from measures import HeadLosses

PAIRS = (
    ("int2", "int2-qvg"),
    ("int2", "quantwm-int2"),
    ("int2-shaped", "int2"),
    ("trit-shaped", "trit"),
    ("bit1", "int2-qvg"),
    ("bit1-shaped", "bit1"),
    ("bit1-shaped", "int2-qvg"),
)
"""Presets whose differences are shown, where both are there."""


@dataclass(frozen=True)
class Row(HeadLosses):
    """What one preset lost in one head.

    Attributes:
        preset: Its name.
        source: Level of the synthetic data, or "recorded".
        sample: Which of the data.
        tokens: Of a span.
        head: Its number.
        kind: Whether the head is "sharp" or "diffuse"; "" until its like are known.
        bits: Stored bits a value, mean of keys and values.
        key_db: Relative error of the keys of all heads.
        value_db: Relative error of the values.
        key_gain: Part of the keys' deviation from their mean that is kept; 1 is unbiased.
        value_gain: The same for values.
    """

    preset: str
    source: str
    sample: str
    tokens: int
    head: int
    kind: str
    bits: float
    key_db: float
    value_db: float
    key_gain: float
    value_gain: float


@dataclass(frozen=True)
class Cell:
    """The rows of one preset on the same data, their heads told apart."""

    rows: Sequence[Row]

    @property
    def bits(self) -> float:
        """Stored bits a value."""
        return self.mean("bits")

    def mean(self, measure: str, kind: str | None = None) -> float:
        """Mean over heads and samples, of all or of one kind."""
        return statistics.fmean(
            getattr(row, measure) for row in self.rows if kind is None or row.kind == kind
        )

    def difference(self, other: Cell, measure: str, kind: str | None = None) -> tuple[float, float]:
        """How much more this has than `other`, head by head: the mean and its standard error."""
        ours, theirs = (cell.by_head(measure, kind) for cell in (self, other))
        differences = [value - theirs[head] for head, value in ours.items()]
        if not differences:
            return math.nan, math.nan
        if len(differences) == 1:
            return differences[0], math.nan
        return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))

    def by_head(self, measure: str, kind: str | None) -> dict[tuple[str, int], float]:
        """By sample and head; of a synthetic head, which is judged as both kinds, the mean of both."""
        found: dict[tuple[str, int], list[float]] = defaultdict(list)
        for row in self.rows:
            if kind is None or row.kind == kind:
                found[row.sample, row.head].append(getattr(row, measure))
        return {head: statistics.fmean(values) for head, values in found.items()}


def cells_of(rows: Sequence[Row]) -> dict[tuple[str, int], dict[str, Cell]]:
    """By source and span, then by preset."""
    groups: dict[tuple[str, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row.source, row.tokens][row.preset].append(row)
    cells = {}
    for place, by_preset in groups.items():
        sharp = _sharp_heads(next(iter(by_preset.values())))
        cells[place] = {
            preset: Cell([_with_kind(row, sharp) for row in of_preset])
            for preset, of_preset in by_preset.items()
        }
    return cells


def _sharp_heads(rows: Sequence[Row]) -> set[tuple[str, int]]:
    """The half of the heads that attends to fewer keys."""
    by_keys = sorted(rows, key=lambda row: row.num_keys)
    return {(row.sample, row.head) for row in by_keys[: (len(by_keys) + 1) // 2]}


def _with_kind(row: Row, sharp: set[tuple[str, int]]) -> Row:
    kind = "sharp" if (row.sample, row.head) in sharp else "diffuse"
    return row if row.kind else dataclasses.replace(row, kind=kind)


def write_table(rows: Sequence[Row]) -> str:
    """Markdown: a table for each source and span."""
    lines = []
    for (source, tokens), by_preset in cells_of(rows).items():
        lines += [
            f"\n{source}, spans of {tokens:,} tokens\n",
            "| preset | bits | K error dB | V error dB | attention sharp dB | diffuse dB | logits dB "
            "| token shift sharp % | diffuse % | moved sharp % | diffuse % | K gain | V gain |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for preset, cell in sorted(by_preset.items(), key=lambda item: item[1].mean("attention_db", "sharp")):
            kinds = [kind for kind in ("sharp", "diffuse") if any(row.kind == kind for row in cell.rows)]
            figures = [
                preset,
                f"{cell.bits:.3f}",
                *(f"{cell.mean(name):.2f}" for name in ("key_db", "value_db")),
                *_by_kind(cell, kinds, "attention_db", 2, 1),
                f"{cell.mean('logit_db'):.2f}",
                *_by_kind(cell, kinds, "token_shift", 1, 100),
                *_by_kind(cell, kinds, "moved", 1, 100),
                *(f"{cell.mean(name):.3f}" for name in ("key_gain", "value_gain")),
            ]
            lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _by_kind(cell: Cell, kinds: Sequence[str], measure: str, digits: int, times: float) -> list[str]:
    """The figure of sharp and of diffuse heads; of a lone head there is one."""
    return [
        f"{times * cell.mean(measure, kind):.{digits}f}" if kind in kinds else "-"
        for kind in ("sharp", "diffuse")
    ]


def write_differences(rows: Sequence[Row]) -> str:
    """Markdown: how far presets lie from others on the same data, head by head; below 0 they are better."""
    lines = [
        "| preset | against | data | tokens | bits | attention sharp dB | diffuse dB | logits dB "
        "| token shift, points |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (ours, theirs), ((source, tokens), by_preset) in itertools.product(PAIRS, cells_of(rows).items()):
        # A preset's label may carry knobs after a colon: the one with the nearest bits counts.
        others = [cell for name, cell in by_preset.items() if name.partition(":")[0] == theirs]
        if ours not in by_preset or not others:
            continue
        one = by_preset[ours]
        other = min(others, key=lambda cell: abs(cell.bits - one.bits))
        figures = [
            _with_error(*one.difference(other, "attention_db", "sharp"), 1),
            _with_error(*one.difference(other, "attention_db", "diffuse"), 1),
            _with_error(*one.difference(other, "logit_db"), 1),
            _with_error(*one.difference(other, "token_shift"), 100),
        ]
        lines.append(
            f"| {ours} | {theirs} | {source} | {tokens:,} | {one.bits:.3f} / {other.bits:.3f} "
            f"| {' | '.join(figures)} |"
        )
    return "\n".join(lines) + "\n"


def _with_error(mean: float, error: float, times: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{times * mean:+.2f}" + ("" if math.isnan(error) else f" ± {times * error:.2f}")


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """Error of attention's output against bits: a panel a source, both kinds of heads, the longest span."""
    longest = max(row.tokens for row in rows)
    panels = {
        source: by_preset for (source, tokens), by_preset in cells_of(rows).items() if tokens == longest
    }
    kinds = ("sharp", "diffuse")
    figure, axes = pyplot.subplots(
        len(kinds), len(panels), figsize=(4.6 * len(panels), 7.5), sharex=True, squeeze=False
    )
    for column, (source, by_preset) in enumerate(panels.items()):
        for axis, kind in zip(axes[:, column], kinds, strict=True):
            axis.set_title(f"{source}, {kind}")
            draw_points(
                axis,
                [
                    (preset, cell.bits, cell.mean("attention_db", kind))
                    for preset, cell in by_preset.items()
                    if any(row.kind == kind for row in cell.rows)
                ],
            )
        axes[-1, column].set_xlabel(f"bits a value, spans of {longest:,} tokens")
    for axis in axes[:, 0]:
        axis.set_ylabel("error of attention's output, dB")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_points(axis: pyplot.Axes, points: list[tuple[str, float, float]]) -> None:
    """Points with names, and the line of those that no other beats in both bits and error."""
    best = [
        (bits, error)
        for _, bits, error in sorted(points, key=lambda point: point[1:])
        if not any(other <= bits and lower < error for _, other, lower in points)
    ]
    axis.plot(*zip(*best, strict=True), color="0.7", linewidth=1, zorder=0)
    errors = [error for _, _, error in points]
    near = (max(errors, default=0) - min(errors, default=0)) / 25
    for name, bits, error in points:
        colour = "tab:red" if "qvg" in name else "tab:green" if (bits, error) in best else "tab:grey"
        axis.scatter([bits], [error], s=22, color=colour)
        # Of neighbours, the last has its name at the right, the others at the left.
        is_left = any(abs(error - y) < near and (bits, error) < (x, y) for _, x, y in points)
        axis.annotate(
            name.replace(":num_centroids=", ", "),
            (bits, error),
            textcoords="offset points",
            xytext=(-5, -3) if is_left else (5, -3),
            ha="right" if is_left else "left",
            fontsize=7,
        )
    # Room for the names.
    axis.margins(x=0.28)
    axis.grid(alpha=0.3)
