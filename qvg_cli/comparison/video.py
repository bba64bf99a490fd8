"""One video of a comparison: every variant's frames against the baseline's, and all of them side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvg_cli.comparison.quality import FrameQuality, measure, video_figures
from qvg_cli.comparison.side_by_side import SideBySide
from qvg_cli.comparison.spool import FrameSpool
from qvg_cli.report.comparison import db_text
from qvg_cli.report.pictures import jpeg
from qvg_cli.video.io import VideoWriter

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
