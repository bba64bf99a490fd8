"""Draw the animated picture of the README: the demo model with a BF16 cache beside the 2-bit one.

    python -m scripts.docs.draw_demo docs/images/demo.webp

makes both videos by `qvg generate`, which takes a minute on one core, and shows below every frame what the
cache held after the chunk that the frame belongs to.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import matplotlib
from PIL import Image, ImageDraw, ImageFont

PROMPT = "A large yellow cone circles on grass under a blue sky"
SEED = 0
VARIANTS = {"bf16": "BF16 cache", "int2": "int2 cache (the default)"}
SCALE = 2
MARGIN = 16
HEADER, FOOTER = 40, 64
BACKGROUND, TEXT, FAINT = (17, 24, 39), (243, 244, 246), (55, 65, 81)
COLOURS = {"bf16": (248, 113, 113), "int2": (74, 222, 128)}
LIMIT_BYTES = 3_000_000


@dataclass(frozen=True)
class Clip:
    """The frames of one run, and what its cache held while each was made."""

    frames: list[Image.Image]
    cache_mib: list[float]
    fps: int


def main() -> None:
    """Make the videos and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", type=Path)
    target: Path = parser.parse_args().target
    with tempfile.TemporaryDirectory() as folder:
        clips = {preset: make_clip(preset, Path(folder)) for preset in VARIANTS}
    fps = next(iter(clips.values())).fps
    pictures = draw(clips)
    # The last frame stays for a moment, so that the final sizes can be read.
    durations = [round(1000 / fps)] * (len(pictures) - 1) + [2000]
    pictures[0].save(
        target, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=72, method=6
    )
    size = target.stat().st_size
    if size > LIMIT_BYTES:
        sys.exit(f"{target} has {size} bytes; at most {LIMIT_BYTES} load quickly")


def make_clip(preset: str, folder: Path) -> Clip:
    """Run `qvg generate` with one cache and read what it left."""
    out = folder / preset
    command = [sys.executable, "-m", "qvg_cli", "generate", PROMPT]
    command += ["--seed", str(SEED), "--cache", preset, "--out", str(out), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (report,) = out.glob("*/*/memory.json")
    memory = json.loads(report.read_text(encoding="utf-8"))
    reader = imageio_ffmpeg.read_frames(str(report.with_name("video.mp4")))
    size = next(reader)["size"]
    frames = [Image.frombytes("RGB", size, data) for data in reader]
    cache_mib = []
    for chunk in memory["chunks"]:
        made = chunk["pixel_frames"] - len(cache_mib)
        cache_mib += [chunk["end"]["bytes"] / 2**20] * made
    return Clip(frames, cache_mib, memory["fps"])


def draw(clips: dict[str, Clip]) -> list[Image.Image]:
    """One picture a frame: the videos in a row, a bar below each in the scale of the largest cache."""
    largest = max(max(clip.cache_mib) for clip in clips.values())
    first = next(iter(clips.values())).frames[0]
    width, height = SCALE * first.width, SCALE * first.height
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    bold = ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", 20)
    pictures = []
    for index in range(min(len(clip.frames) for clip in clips.values())):
        size = (len(clips) * (width + MARGIN) + MARGIN, HEADER + height + FOOTER)
        picture = Image.new("RGB", size, BACKGROUND)
        pen = ImageDraw.Draw(picture)
        for column, (preset, clip) in enumerate(clips.items()):
            left = MARGIN + column * (width + MARGIN)
            pen.text((left, HEADER / 2), VARIANTS[preset], TEXT, bold, anchor="lm")
            picture.paste(
                clip.frames[index].resize((width, height), Image.Resampling.BICUBIC), (left, HEADER)
            )
            mib = clip.cache_mib[index]
            top = HEADER + height + 14
            pen.rounded_rectangle((left, top, left + width, top + 36), 6, FAINT)
            filled = max(12, round(width * mib / largest))
            pen.rounded_rectangle((left, top, left + filled, top + 36), 6, COLOURS[preset])
            label = f"{mib:.2f} MiB"
            if filled > width / 2:
                pen.text((left + filled - 10, top + 18), label, BACKGROUND, bold, anchor="rm")
            else:
                pen.text((left + filled + 10, top + 18), label, TEXT, bold, anchor="lm")
        pictures.append(picture)
    return pictures


if __name__ == "__main__":
    main()
