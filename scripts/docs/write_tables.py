"""Write the tables of models and GPUs into the README and the guides, from `qvg plan`.

    python -m scripts.docs.write_tables [--check]

Each table stands between `<!-- NAME -->` and `<!-- end NAME -->`. With --check nothing is written, and the
exit code says whether the tables are up to date.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts.docs.planned import Prediction, predict

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", ROOT / "docs" / "guides" / "long-videos.md"]
GPUS_GIB = (12, 16, 24, 32, 80)
SHORTEST_SECONDS = 4
"""What is shorter is not worth a cell."""

SETTINGS: dict[str, tuple[str, ...]] = {
    "": (),
    "A": ("memory.transformer=model", "memory.vae=model"),
    "B": ("memory.transformer=group",),
}
"""Settings that leave the video as it is, the fastest first."""


@dataclass(frozen=True)
class Model:
    """What a table says of a model and no plan knows."""

    task: str
    licence: str
    status: str


MODELS = {
    "self-forcing": Model("text to video", "CC BY-NC-SA 4.0", "numerics checked"),
    "hyworldplay": Model("image and camera path to video", "Tencent community licence", "numerics checked"),
    "longcat": Model("text, image or clip to video", "MIT", "numerics checked"),
}


def main() -> None:
    """Write or check every table."""
    predictions = {
        (model, key): predict(model, settings) for model in MODELS for key, settings in SETTINGS.items()
    }
    tables = {"models": models_table(predictions), "gpus": gpus_table(predictions)}
    stale = []
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = old
        folder = os.path.relpath(ROOT / "docs", page.parent)
        for name, table in tables.items():
            new = replace(new, name, table.replace("](docs/", f"]({folder}/" if folder != "." else "]("))
        if new != old:
            stale.append(page.relative_to(ROOT))
            if "--check" not in sys.argv[1:]:
                page.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"not what qvg plan says: {', '.join(map(str, stale))}; run: make docs")


def models_table(predictions: dict[tuple[str, str], Prediction]) -> str:
    """One row a model, the demo models in a row of their own."""
    rows = [
        "| model | makes | resolution | download | weights licence | smallest GPU | status |",
        "|---|---|---|---|---|---|---|",
        "| demo (built in) | text to video; the other tasks with `--pocket` | 224x128 | none "
        "| Apache-2.0 | none, runs on a CPU | [trained and measured](docs/pocket.md) |",
    ]
    for name, model in MODELS.items():
        some = predictions[name, ""]
        smallest = min(
            gib for gib in GPUS_GIB for key in SETTINGS if predictions[name, key].longest(gib) is not None
        )
        rows.append(
            f"| `{name}` | {model.task} | {some.width}x{some.height} | {some.download_gb:.0f} GB "
            f"| {model.licence} | {smallest} GB | [{model.status}](docs/verified.md) |"
        )
    return "\n".join(rows)


def gpus_table(predictions: dict[tuple[str, str], Prediction]) -> str:
    """One row a GPU: the longest video with the defaults, and with settings that offload if that is more."""
    rows = [f"| GPU | {' | '.join(f'`{name}`' for name in MODELS)} |", "|---|" + "---|" * len(MODELS)]
    for gib in GPUS_GIB:
        cells = []
        for name in MODELS:
            shown: list[str] = []
            best = 0.0
            for key in SETTINGS:
                seconds = predictions[name, key].longest(gib)
                if seconds is not None and seconds > max(SHORTEST_SECONDS, 1.05 * best):
                    best = seconds
                    shown.append(length_text(seconds) + (f" ({key})" if key else ""))
            cells.append(" · ".join(shown) or "too small")
        rows.append(f"| {gib} GB | {' | '.join(cells)} |")
    return "\n".join(rows)


def length_text(seconds: float) -> str:
    """Whole seconds, rounded down, so that what is shown fits."""
    return "any length" if seconds == float("inf") else f"{int(seconds)} s"


def replace(text: str, name: str, table: str) -> str:
    """Put a table between its marks, if the page has them; paths are taken from the README's folder."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    return pattern.sub(lambda marks: f"{marks[1]}\n{table}\n\n{marks[2]}", text)


if __name__ == "__main__":
    main()
