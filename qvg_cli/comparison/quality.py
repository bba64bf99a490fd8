"""How far a video is from another that should be equal: by frame, by window of time, and from when on.

Measured on the pixels before any lossy coding, as scikit-image does: PSNR over all values of a frame, SSIM
with a Gaussian window of sigma 1.5 and 11 pixels, population covariance, mean over the channels.
Autoregressive videos drift apart, so a mean over the whole video says little; the windows say when. The PSNR
of several frames is taken from the mean of their squared errors. Only the frames being compared are held.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvg_cli.comparison.spool import FrameSpool

_PEAK = 255.0
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each frame, `[N]` float64; infinite where they are equal.

    Args:
        first: `[N, height, width, 3]` uint8.
        second: Like `first`.
    """
    difference = first.double() - second.double()
    return 10 * torch.log10(_PEAK**2 / difference.square().mean(dim=(1, 2, 3)))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each frame, `[N]` float64, 1 where they are equal.

    Args:
        first: `[N, height, width, 3]` uint8, at least 11 pixels each way.
        second: Like `first`.

    Source: Wang et al. 2004, with the constants of scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`, borders left out.
    """
    a, b = (frames.permute(0, 3, 1, 2).double() for frames in (first, second))
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    return similarity.mean(dim=(1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    """Gaussian mean of `[N, C, height, width]` wherever the whole window fits."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    return _weighted_sum(_weighted_sum(images, weights / weights.sum(), 2), weights / weights.sum(), 3)


def _weighted_sum(images: Tensor, weights: Tensor, dimension: int) -> Tensor:
    """Sum of shifted copies: on a CPU 3 to 14 times faster than a float64 convolution."""
    length = images.shape[dimension] - len(weights) + 1
    total = images.narrow(dimension, 0, length) * weights[0].item()
    for offset, weight in enumerate(weights[1:].tolist(), start=1):
        total.add_(images.narrow(dimension, offset, length), alpha=weight)
    return total


WINDOW_SECONDS = 2.0
DIVERGENCE_DB = 30.0
"""A fixed line by which runs can be compared; what a person sees depends on the picture."""
EQUAL_DB = 100.0
"""What equal frames count as in a mean over videos."""
_BATCH_FRAMES = 8


@dataclass(frozen=True)
class FrameQuality:
    """Every frame of a video against that of the baseline; PSNR is infinite where they are equal."""

    psnr_db: tuple[float, ...]
    ssim: tuple[float, ...]
    lpips: tuple[float, ...] | None = None


def measure(
    baseline: FrameSpool,
    video: FrameSpool,
    device: torch.device,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> FrameQuality:
    """Compare two videos of the same length, a few frames at a time, with LPIPS if `perceptual` is given."""
    psnr_db: list[float] = []
    similarity: list[float] = []
    distance: list[float] = []
    for start in range(0, baseline.num_frames, _BATCH_FRAMES):
        stop = min(start + _BATCH_FRAMES, baseline.num_frames)
        pair = [torch.from_numpy(spool.read(start, stop)).to(device) for spool in (baseline, video)]
        psnr_db += psnr(*pair).tolist()
        similarity += ssim(*pair).tolist()
        if perceptual is not None:
            # One by one: the features of a frame are many times its size.
            for one, other in zip(*(frames.split(1) for frames in pair), strict=True):
                distance += perceptual(one, other).tolist()
    return FrameQuality(tuple(psnr_db), tuple(similarity), None if perceptual is None else tuple(distance))


def video_figures(quality: FrameQuality, fps: int) -> dict[str, Any]:
    """Figures of one video for compare.json; a PSNR of none means equal frames."""
    num_frames, length = len(quality.psnr_db), max(1, round(WINDOW_SECONDS * fps))
    windows = [slice(start, min(start + length, num_frames)) for start in range(0, num_frames, length)]
    return {
        **_figures(quality, slice(None)),
        **divergence(quality),
        "windows": [
            {"first_frame": each.start, "num_frames": each.stop - each.start, **_figures(quality, each)}
            for each in windows
        ],
        "frames": {
            "psnr_db": [_finite(value) for value in quality.psnr_db],
            "ssim": [round(value, 6) for value in quality.ssim],
            "lpips": None if quality.lpips is None else [round(value, 6) for value in quality.lpips],
        },
    }


def divergence(quality: FrameQuality) -> dict[str, int | None]:
    """The first frame of which any value differs, and the first below `DIVERGENCE_DB`; `None` without one."""
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
            {**{name: windows[0][name] for name in ("first_frame", "num_frames")}, **_mean(windows)}
            for windows in zip(*(video["windows"] for video in videos), strict=True)
        ],
    }


def _figures(quality: FrameQuality, window: slice) -> dict[str, float | None]:
    mean = _mean_of([10 ** (-value / 10) for value in quality.psnr_db[window]])
    return {
        "psnr_db": _finite(-10 * math.log10(mean) if mean else math.inf),
        "ssim": round(_mean_of(quality.ssim[window]), 6),
        "lpips": None if quality.lpips is None else round(_mean_of(quality.lpips[window]), 6),
    }


def _mean(figures: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    values = [figure["psnr_db"] for figure in figures]
    counted = [EQUAL_DB if value is None else value for value in values]
    is_equal = all(value is None for value in values)
    distances = [figure["lpips"] for figure in figures]
    return {
        "psnr_db": None if is_equal else round(_mean_of(counted), 4),
        "ssim": round(_mean_of([figure["ssim"] for figure in figures]), 6),
        "lpips": None if None in distances else round(_mean_of(distances), 6),
    }


def _mean_of(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 4)


def _first(values: Sequence[float], is_reached: Callable[[float], bool]) -> int | None:
    return next((index for index, value in enumerate(values) if is_reached(value)), None)
