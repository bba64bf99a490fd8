"""Run every codec bench and write its tables and plots into docs/results.md, between their marks.

    python scripts/bench/write_results.py --work build/results

Benches whose table is in the working folder already are not run again, so a long series may be made piece by
piece.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FIDELITY = ROOT / "kernels" / "bench" / "fidelity.py"
HERE = Path(__file__).parent
# Tables that give the k-means schemes the bits of int2 at each of these spans of the pocket model.
POCKET_SPANS = {336: 6, 1008: 16, 2352: 32}
POCKET_PRESETS = (
    "int2",
    *(f"int2-qvg:num_centroids={count}" for count in POCKET_SPANS.values()),
    "int2-asym:num_centroids=6",
    *("int2-scalar", "trit", "int2-lite", "int3", "int4"),
    *("rtn-int2", "kivi-int2", "quarot-int2", "turboquant-int2"),
)


def run(script: Path, *arguments: object) -> None:
    """Run one bench; its lines are shown as they come."""
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True)


def make_tables(work: Path, dtype: str, threads: int) -> None:
    """Run the benches whose tables are missing from `work`."""
    work.mkdir(parents=True, exist_ok=True)
    recorded = work / "recorded.safetensors"
    if not (work / "synthetic.md").exists():
        plot = work / "synthetic.png"
        run(FIDELITY, "--threads", threads, "--table", work / "synthetic.md", "--plot", plot)
    if not recorded.exists():
        run(HERE / "record.py", "--out", recorded)
    if not (work / "recorded.md").exists():
        paths = ("--table", work / "recorded.md", "--plot", work / "recorded.png", "--threads", threads)
        run(
            FIDELITY,
            "--recorded",
            recorded,
            "--spans",
            *POCKET_SPANS,
            "--presets",
            *POCKET_PRESETS,
            *paths,
        )
    if not (work / "closed_loop.md").exists():
        run(HERE / "closed_loop.py", "--out", work, "--dtype", dtype)


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
    """Make what is missing and rewrite docs/results.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the benches' own files")
    parser.add_argument("--dtype", default="bfloat16", help="of the model in the closed loop")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    make_tables(options.work, options.dtype, options.threads)
    page = DOCS / "results.md"
    text = page.read_text(encoding="utf-8")
    for name in ("synthetic", "recorded", "closed_loop"):
        text = fill(text, name, (options.work / f"{name}.md").read_text(encoding="utf-8"))
        shutil.copyfile(
            options.work / f"{name}.png", DOCS / "images" / f"results-{name.replace('_', '-')}.png"
        )
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
