"""PSNR and SSIM against scikit-image's figures for the same frames.

The figures were computed once with scikit-image 0.26 (`peak_signal_noise_ratio`, `structural_similarity` with
gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2).
"""

import torch

from qvg_cli.comparison.quality import psnr, ssim


def frames():
    generator = torch.Generator().manual_seed(3)
    ramp = torch.linspace(0, 255, 40 * 56 * 3).view(1, 40, 56, 3).expand(2, -1, -1, -1)
    noise = torch.randn(2, 40, 56, 3, generator=generator) * torch.tensor([4.0, 25.0]).view(2, 1, 1, 1)
    return ramp.round().to(torch.uint8), (ramp + noise).round().clamp(0, 255).to(torch.uint8)


def test_psnr_is_scikit_images():
    expected = torch.tensor([36.08907871822662, 20.641498719957227], dtype=torch.float64)
    torch.testing.assert_close(psnr(*frames()), expected, rtol=1e-12, atol=0)


def test_ssim_is_scikit_images():
    expected = torch.tensor([0.9389351024206214, 0.29379374888296605], dtype=torch.float64)
    torch.testing.assert_close(ssim(*frames()), expected, rtol=1e-9, atol=0)


def test_equal_frames():
    first, _ = frames()
    assert psnr(first, first).isinf().all()
    torch.testing.assert_close(ssim(first, first), torch.ones(2, dtype=torch.float64))
