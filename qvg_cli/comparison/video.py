"""One video of a comparison: every variant's frames against the baseline's, and all of them side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from qvg_cli.comparison.quality import FrameQuality, measure, video_figures
from qvg_cli.comparison.spool import FrameSpool
from qvg_cli.plotting import color_levels
from qvg_cli.report.comparison import db_text
from qvg_cli.report.pictures import jpeg
from qvg_cli.video.io import Frames, VideoWriter

ERROR_LEVELS = 64
"""Difference, of 255 levels, that is drawn in the brightest colour."""
_MAX_COLUMNS = 4
_MAX_WIDTH = 1920
_LEAST_PANEL = 240
_STRIP, _GAP = 24, 4
_BACKGROUND, _INK = (18, 18, 18), (235, 235, 235)
_COLORS = color_levels("inferno")


class SideBySide:
    """Draws one picture a frame: per video a caption, its frame and its error map, at most four in a row.

    Small frames are enlarged by a whole factor, so that every pixel stays itself; a row that is too wide for
    a screen is made smaller.

    Attributes:
        size: Height and width of the pictures, both even.
    """

    def __init__(self, num_videos: int, *, height: int, width: int) -> None:
        self._columns = min(num_videos, _MAX_COLUMNS)
        rows = math.ceil(num_videos / self._columns)
        factor = max(1, math.ceil(_LEAST_PANEL / width))
        scale = min(float(factor), _MAX_WIDTH / (self._columns * width))
        self._panel = (max(1, round(width * scale)), max(1, round(height * scale)))
        self._is_enlarged = scale == factor
        self._cell = (self._panel[0] + _GAP, _STRIP + 2 * (self._panel[1] + _GAP))
        canvas_width, canvas_height = self._columns * self._cell[0] - _GAP, rows * self._cell[1]
        self.size = (canvas_height + canvas_height % 2, canvas_width + canvas_width % 2)
        self._font = ImageFont.load_default(14)

    def draw(self, frames: Sequence[Frames], captions: Sequence[str]) -> Frames:
        """One picture `[height, width, 3]` of the same frame of every video, the baseline's first."""
        canvas = Image.new("RGB", (self.size[1], self.size[0]), _BACKGROUND)
        for index, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
            left = index % self._columns * self._cell[0]
            top = index // self._columns * self._cell[1]
            strip = Image.new("RGB", (self._panel[0], _STRIP), _BACKGROUND)
            ImageDraw.Draw(strip).text((4, 4), caption, fill=_INK, font=self._font)
            canvas.paste(strip, (left, top))
            canvas.paste(self._fit(Image.fromarray(frame)), (left, top + _STRIP))
            below = self._legend() if index == 0 else self._fit(Image.fromarray(error_map(frames[0], frame)))
            canvas.paste(below, (left, top + _STRIP + self._panel[1] + _GAP))
        return np.asarray(canvas)

    def _fit(self, picture: Image.Image) -> Image.Image:
        method = Image.Resampling.NEAREST if self._is_enlarged else Image.Resampling.BOX
        return picture.resize(self._panel, method)

    def _legend(self) -> Image.Image:
        """What the colours of the error maps mean, where the baseline's own map would be."""
        width, height = self._panel
        legend = Image.new("RGB", self._panel, _BACKGROUND)
        draw = ImageDraw.Draw(legend)
        middle = height // 2
        bar = Image.fromarray(np.broadcast_to(_COLORS, (10, 256, 3))).resize((width - 16, 10))
        draw.text((8, middle - 24), "largest error of a pixel", fill=_INK, font=self._font)
        legend.paste(bar, (8, middle))
        draw.text((8, middle + 12), "0", fill=_INK, font=self._font)
        draw.text(
            (width - 8, middle + 12), f"{ERROR_LEVELS}+ of 255", fill=_INK, font=self._font, anchor="ra"
        )
        return legend


def error_map(baseline: Frames, frame: Frames) -> Frames:
    """The largest difference among the three colours of each pixel, as `[height, width, 3]` uint8 colours."""
    difference = np.abs(baseline.astype(np.int32) - frame).max(axis=-1)
    return _COLORS[np.minimum(difference * 255 // ERROR_LEVELS, 255)]


_STILL_WIDTH = 1200


@dataclass(frozen=True)
class Still:
    frame: int
    jpeg: bytes


@dataclass(frozen=True)
class ComparedVideo:
    """What the comparison of one video found.

    Attributes:
        figures: Of every variant but the baseline; see docs/reports.md.
        stills: The first frame that differs, the middle one and the last.
    """

    figures: list[dict[str, Any]]
    stills: list[Still]


def compare_video(
    names: Sequence[str],
    spools: Sequence[FrameSpool],
    path: Path,
    *,
    fps: int,
    device: torch.device,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> ComparedVideo:
    """Measure every variant against the first and write the side-by-side video to `path`."""
    qualities = [measure(spools[0], spool, device, perceptual) for spool in spools[1:]]
    figures = [video_figures(quality, fps) for quality in qualities]
    firsts = [figure["first_different_frame"] for figure in figures]
    different = min((frame for frame in firsts if frame is not None), default=0)
    num_frames = spools[0].num_frames
    shown = sorted({different, (different + num_frames) // 2, num_frames - 1})
    return ComparedVideo(figures, _write_side_by_side(names, spools, qualities, path, fps, shown))


def _write_side_by_side(
    names: Sequence[str],
    spools: Sequence[FrameSpool],
    qualities: Sequence[FrameQuality],
    path: Path,
    fps: int,
    still_frames: Sequence[int],
) -> list[Still]:
    _, height, width, _ = spools[0].read(0, 1).shape
    pictures = SideBySide(len(spools), height=height, width=width)
    stills = []
    with VideoWriter(path, height=pictures.size[0], width=pictures.size[1], fps=fps) as writer:
        for index in range(spools[0].num_frames):
            frames = [spool.read(index, index + 1)[0] for spool in spools]
            picture = pictures.draw(frames, _captions(names, qualities, index, fps))
            writer.write(picture[None])
            if index in still_frames:
                stills.append(Still(index, jpeg(picture, max_width=_STILL_WIDTH)))
    return stills


def _captions(names: Sequence[str], qualities: Sequence[FrameQuality], frame: int, fps: int) -> list[str]:
    captions = [f"{names[0]}   {frame / fps:.2f} s"]
    for name, quality in zip(names[1:], qualities, strict=True):
        psnr_db = quality.psnr_db[frame]
        captions.append(f"{name}   {db_text(None) if psnr_db == math.inf else f'{db_text(psnr_db)} dB'}")
    return captions
