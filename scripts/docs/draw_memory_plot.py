"""Draw device memory against the length of a Self-Forcing video, BF16 and 2-bit cache, from `qvg plan`.

python -m scripts.docs.draw_memory_plot docs/images/why-two-bits.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from scripts.docs.planned import GIB, USABLE, predict

CACHES = {"bf16": ("BF16 cache", "#dc2626", (80, 84)), "int2": ("2-bit cache (int2)", "#16a34a", (150, 39))}
"""Label, colour, and where the label stands."""
GPUS_GIB = (12, 24, 32, 80)


def main() -> None:
    """Plan both and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", type=Path)
    target: Path = parser.parse_args().target
    figure, axes = plt.subplots(figsize=(8, 3.6), dpi=110)
    for preset, (label, colour, place) in CACHES.items():
        found = predict("self-forcing", cache=preset)
        seconds = [moment.pixel_frames / found.fps for moment in found.moments]
        gib = [moment.device_bytes / GIB for moment in found.moments]
        axes.plot(seconds, gib, color=colour, linewidth=2.5)
        axes.text(*place, label, color=colour, fontweight="bold", ha="left")
    for memory in GPUS_GIB:
        axes.axhline(USABLE * memory, color="#6b7280", linewidth=0.8, linestyle="--")
        axes.text(254, USABLE * memory + 1, f"{memory} GB GPU", ha="right", va="bottom", color="#4b5563")
    axes.set(xlim=(0, 255), ylim=(0, 90), xlabel="length of the video [s]", ylabel="GPU memory [GiB]")
    axes.set_title("Self-Forcing 480p, whole history attended to (predicted by qvg plan)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, metadata={"Software": None})


if __name__ == "__main__":
    main()
