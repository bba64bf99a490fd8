"""Figures of a comparison: windows, divergence, means, and frames that come from disk as they went there."""

import math

import numpy as np
import pytest
import torch

from qvg_cli.comparison.quality import FrameQuality, mean_figures, measure, psnr, ssim, video_figures
from qvg_cli.comparison.spool import FrameSpool, check_space
from qvg_cli.errors import QvgError

FPS = 4
INF = math.inf


def figures(psnr_db, ssim=None):
    return video_figures(FrameQuality(tuple(psnr_db), tuple(ssim or [0.5] * len(psnr_db))), FPS)


def test_windows_are_two_seconds_and_the_last_is_what_is_left():
    windows = figures([40.0] * 19)["windows"]
    assert [(window["first_frame"], window["num_frames"]) for window in windows] == [(0, 8), (8, 8), (16, 3)]


def test_the_psnr_of_several_frames_is_that_of_their_mean_squared_error():
    # Errors of 1 and 0.01 of the peak's square: their mean is 0.505.
    assert figures([0.0, 20.0])["psnr_db"] == pytest.approx(-10 * math.log10(0.505), abs=1e-4)
    # An equal frame halves the error.
    assert figures([30.0, INF])["psnr_db"] == pytest.approx(33.0103, abs=1e-4)


def test_equal_frames_have_no_psnr():
    made = figures([INF, INF], [1.0, 1.0])
    assert made["psnr_db"] is None
    assert made["frames"]["psnr_db"] == [None, None]
    assert made["first_different_frame"] is None
    assert made["first_diverged_frame"] is None


def test_divergence_is_the_first_frame_that_differs_and_the_first_under_30_db():
    made = figures([INF, INF, 45.0, 30.0, 29.9, 50.0])
    assert (made["first_different_frame"], made["first_diverged_frame"]) == (2, 4)


def test_means_take_the_earliest_divergence_and_count_equal_videos_as_100_db():
    together = mean_figures([figures([INF, 40.0, 20.0]), figures([INF, INF, INF], [1.0] * 3)])
    first = figures([INF, 40.0, 20.0])
    assert together["psnr_db"] == pytest.approx((first["psnr_db"] + 100) / 2, abs=1e-4)
    assert together["ssim"] == 0.75
    assert (together["first_different_frame"], together["first_diverged_frame"]) == (1, 2)
    assert mean_figures([figures([INF]), figures([INF])])["psnr_db"] is None


def test_measuring_from_disk_is_measuring_in_memory(tmp_path):
    generator = np.random.default_rng(0)
    # More frames than are compared at a time.
    first, second = generator.integers(0, 255, (2, 21, 16, 20, 3), np.uint8)
    with (
        FrameSpool(tmp_path, height=16, width=20) as a,
        FrameSpool(tmp_path, height=16, width=20) as b,
    ):
        for spool, frames in ((a, first), (b, second)):
            spool.write(frames[:9])
            spool.write(frames[9:])
        assert np.array_equal(a.read(7, 12), first[7:12])
        quality = measure(a, b, torch.device("cpu"))
        pair = torch.from_numpy(first), torch.from_numpy(second)
        assert quality.psnr_db == pytest.approx(psnr(*pair).tolist())
        assert quality.ssim == pytest.approx(ssim(*pair).tolist())
        assert measure(a, a, torch.device("cpu")).psnr_db == (INF,) * 21
    assert not list(tmp_path.iterdir())


def test_a_spool_takes_its_own_frames_only(tmp_path):
    with FrameSpool(tmp_path, height=16, width=20) as spool:
        with pytest.raises(ValueError, match="are not"):
            spool.write(np.zeros((1, 20, 16, 3), np.uint8))
        with pytest.raises(ValueError, match="are not"):
            spool.write(np.zeros((1, 16, 20, 3), np.float32))
        assert spool.num_frames == 0


def test_a_disk_that_is_too_small_is_refused_with_both_sizes(tmp_path):
    check_space(tmp_path, num_frames=1, height=16, width=16)
    with pytest.raises(QvgError, match=r"^comparing needs \d+\.\d GiB .* has \d+\.\d GiB free$"):
        check_space(tmp_path, num_frames=10**9, height=480, width=832)
