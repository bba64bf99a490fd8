"""Run every codec bench and write its tables and plots into docs/results.md, between their marks.

    python scripts/bench/write_results.py --work build/results

A bench is not run whose figures are in the working folder: `synthetic.json`, `recorded.json` and
`closed_loop.json` may come from another machine, or be made one by one.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from closed_loop import DEFAULT_ARMS, format_table, write_plot
from matplotlib import pyplot

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BENCH = ROOT / "kernels" / "bench"
HERE = Path(__file__).parent
sys.path.insert(0, str(BENCH))
import figures  # noqa: E402

MATRICES = ROOT / "configs" / "cache" / "shaped" / "self-forcing-pocket.safetensors"
# Tables that give the k-means schemes the bits of int2 at each of these spans of the pocket model.
POCKET_SPANS = {336: 6, 1008: 16, 2352: 32}
POCKET_PRESETS = (
    *(arm for arm in DEFAULT_ARMS if "keep" not in arm),
    *(f"int2-qvg:num_centroids={count}" for count in POCKET_SPANS.values() if count != 6),
)
NAMES = ("synthetic", "recorded", "closed_loop")
PARETO = (("synthetic", "mid", 4680), ("recorded", "recorded", 336))
"""Data of the plots of bits against attention error."""


def run(script: Path, *arguments: object) -> None:
    """Run one bench; its lines are shown as they come."""
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True)


def make_figures(name: str, work: Path, device: str, dtype: str, threads: int) -> None:
    """Run a bench; its figures are in `work` then."""
    recorded, fidelity = work / "recorded.safetensors", BENCH / "fidelity.py"
    common = ("--threads", threads, "--device", device, "--json", work / f"{name}.json")
    if name == "synthetic":
        run(fidelity, *common, "--samples", 3)
    elif name == "recorded":
        if not recorded.exists():
            # Videos that the shipped matrices were not made of.
            run(HERE / "record.py", "--device", device, "--seed", 5, "--first-prompt", 4, "--out", recorded)
        about = ("--recorded", recorded, "--matrices", MATRICES)
        run(fidelity, *common, *about, "--spans", *POCKET_SPANS, "--presets", *POCKET_PRESETS)
    else:
        # A GPU's integer products would add errors of their own, and it makes all videos side by side.
        gpu = () if device == "cpu" else ("--batch", 20, "--set", "cache.arithmetic=bf16")
        run(HERE / "closed_loop.py", "--out", work, "--device", device, "--dtype", dtype, *gpu)


def read_rows(path: Path) -> list[figures.Row]:
    """The figures of a fidelity bench."""
    return [figures.Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def write_pareto(rows: dict[str, list[figures.Row]], arms: list[dict[str, Any]], path: Path) -> None:
    """Bits against the error of attention in sharp heads, and against what is left of the videos."""
    panels = []
    for name, source, tokens in PARETO:
        cells = figures.cells_of(rows[name]).get((source, tokens), {})
        points = [(preset, cell.bits, cell.mean("attention_db", "sharp")) for preset, cell in cells.items()]
        panels.append(
            (f"{source}, spans of {tokens:,} tokens", "error of attention, sharp heads, dB", points)
        )
    loop = [
        (arm["arm"], arm["bits"], -statistics.fmean(arm["windows"][0]["psnr_db"]))
        for arm in arms
        if "keep" not in arm["arm"]
    ]
    panels.append(("closed loop, first 2 s", "below the BF16 cache's videos: minus PSNR, dB", loop))
    drawn = [panel for panel in panels if panel[2]]
    figure, axes = pyplot.subplots(1, len(drawn), figsize=(5.2 * len(drawn), 4.8), squeeze=False)
    for axis, (title, measure, points) in zip(axes[0], drawn, strict=True):
        figures.draw_points(axis, points)
        axis.set_title(title)
        axis.set_xlabel("bits a value")
        axis.set_ylabel(measure)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def fill(text: str, name: str, table: str) -> str:
    """`text` with what stands between the marks of `name` replaced by `table`.

    Raises:
        ValueError: The marks are missing.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    filled, count = pattern.subn(lambda marks: f"{marks[1]}\n{table.strip()}\n\n{marks[2]}", text)
    if count != 1:
        raise ValueError(f"docs/results.md has {count} places for {name}; it needs one")
    return filled


def main() -> None:
    """Run what is missing and rewrite docs/results.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the benches' own files")
    parser.add_argument("--make", nargs="+", choices=NAMES, help="only run these benches, and write no page")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", help="of the model in the closed loop")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    for name in options.make or NAMES:
        if options.make or not (work / f"{name}.json").exists():
            make_figures(name, work, options.device, options.dtype, options.threads)
    if not options.make:
        write_page(work)


def write_page(work: Path) -> None:
    """Rewrite the tables of docs/results.md and its plots."""
    page, images = DOCS / "results.md", DOCS / "images"
    text = page.read_text(encoding="utf-8")
    rows = {name: read_rows(work / f"{name}.json") for name in ("synthetic", "recorded")}
    for name, of_bench in rows.items():
        text = fill(text, name, figures.write_table(of_bench))
        figures.write_plot(of_bench, images / f"results-{name}.png")
    text = fill(text, "differences", figures.write_differences([*rows["synthetic"], *rows["recorded"]]))
    arms = json.loads((work / "closed_loop.json").read_text(encoding="utf-8"))["arms"]
    text = fill(text, "closed_loop", format_table(arms))
    write_plot(arms, images / "results-closed-loop.png")
    write_pareto(rows, arms, images / "results-pareto.png")
    text = fill(text, "pareto", "![Bits against what attention and videos lose](images/results-pareto.png)")
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
