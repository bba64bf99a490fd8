"""How far a video is from another that should be equal: by frame, by window of time, and from when on.

Autoregressive videos drift apart, so a mean over the whole video says little; the windows say when. The PSNR
of several frames is taken from the mean of their squared errors. Only the frames being compared are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qvg_cli.report.spool import FrameSpool
from qvg_cli.video.metrics import psnr, ssim

WINDOW_SECONDS = 2.0
DIVERGENCE_DB = 30.0
"""A fixed line by which runs can be compared; what a person sees depends on the picture."""
EQUAL_DB = 100.0
"""What equal frames count as in a mean over videos."""
_BATCH_FRAMES = 8


@dataclass(frozen=True)
class FrameQuality:
    """Every frame of a video against the same frame of the baseline.

    Attributes:
        psnr_db: Infinite where the frames are equal.
    """

    psnr_db: tuple[float, ...]
    ssim: tuple[float, ...]


def measure(
    baseline: FrameSpool,
    video: FrameSpool,
    device: torch.device,
    on_frames: Callable[[int], None] = lambda count: None,
) -> FrameQuality:
    """Compare two videos of the same length, a few frames at a time.

    Args:
        on_frames: Called with the number of frames that were compared since the last call.
    """
    psnr_db: list[float] = []
    similarity: list[float] = []
    for start in range(0, baseline.num_frames, _BATCH_FRAMES):
        stop = min(start + _BATCH_FRAMES, baseline.num_frames)
        pair = [torch.from_numpy(spool.read(start, stop)).to(device) for spool in (baseline, video)]
        psnr_db += psnr(*pair).tolist()
        similarity += ssim(*pair).tolist()
        on_frames(stop - start)
    return FrameQuality(tuple(psnr_db), tuple(similarity))


def video_figures(quality: FrameQuality, fps: int) -> dict[str, Any]:
    """Figures of one video for compare.json; a PSNR of none means equal frames."""
    return {
        **_figures(quality, slice(None)),
        **divergence(quality),
        "windows": [
            {
                "first_frame": window.start,
                "num_frames": window.stop - window.start,
                **_figures(quality, window),
            }
            for window in _windows(len(quality.psnr_db), fps)
        ],
        "frames": {
            "psnr_db": [_finite(value) for value in quality.psnr_db],
            "ssim": [round(value, 6) for value in quality.ssim],
        },
    }


def divergence(quality: FrameQuality) -> dict[str, int | None]:
    """The first frame of which any value differs, and the first below `DIVERGENCE_DB`; none without one."""
    return {
        "first_different_frame": _first(quality.psnr_db, lambda value: not math.isinf(value)),
        "first_diverged_frame": _first(quality.psnr_db, lambda value: value < DIVERGENCE_DB),
    }


def mean_figures(videos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the figures of several videos, and the earliest divergence among them."""
    return {
        **_mean(videos),
        **{
            name: min((video[name] for video in videos if video[name] is not None), default=None)
            for name in ("first_different_frame", "first_diverged_frame")
        },
        "windows": [
            {
                "first_frame": windows[0]["first_frame"],
                "num_frames": windows[0]["num_frames"],
                **_mean(windows),
            }
            for windows in zip(*(video["windows"] for video in videos), strict=True)
        ],
    }


def _windows(num_frames: int, fps: int) -> Iterator[slice]:
    length = max(1, round(WINDOW_SECONDS * fps))
    for start in range(0, num_frames, length):
        yield slice(start, min(start + length, num_frames))


def _figures(quality: FrameQuality, window: slice) -> dict[str, float | None]:
    errors = [10 ** (-value / 10) for value in quality.psnr_db[window]]
    similarity = quality.ssim[window]
    mean = math.fsum(errors) / len(errors)
    return {
        "psnr_db": _finite(-10 * math.log10(mean) if mean else math.inf),
        "ssim": round(math.fsum(similarity) / len(similarity), 6),
    }


def _mean(figures: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    values = [figure["psnr_db"] for figure in figures]
    counted = [EQUAL_DB if value is None else value for value in values]
    is_equal = all(value is None for value in values)
    return {
        "psnr_db": None if is_equal else round(math.fsum(counted) / len(counted), 4),
        "ssim": round(math.fsum(figure["ssim"] for figure in figures) / len(figures), 6),
    }


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 4)


def _first(values: Sequence[float], is_reached: Callable[[float], bool]) -> int | None:
    return next((index for index, value in enumerate(values) if is_reached(value)), None)
