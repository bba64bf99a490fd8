"""How far two videos are apart, frame by frame, on the pixels before any lossy coding.

Both follow scikit-image: PSNR over all values of a frame, SSIM with a Gaussian window of sigma 1.5 and 11
pixels, population covariance, mean over the channels.
"""

import torch
from torch import Tensor

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
