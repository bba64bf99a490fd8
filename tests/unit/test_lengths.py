"""Lengths as a person gives them, and the nearest that chunks can make."""

import pytest

from qvg_cli.config.load import Request
from qvg_cli.engine.lengths import fit_pixel_frames, fit_seconds
from qvg_cli.errors import UsageError
from qvg_cli.models.registry import load_config


@pytest.fixture
def config():
    return load_config(Request()).config


@pytest.mark.parametrize(("pixel", "latent"), [(9, 3), (21, 6), (81, 21), (4089, 1023)])
def test_pixel_frames_that_fit(config, pixel, latent):
    assert fit_pixel_frames(config, pixel).video.frames == latent


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (82, "--frames 82 does not fit chunks of 3 latent frames (12 pixel frames); nearest: 81, 93"),
        (1, "--frames 1 does not fit chunks of 3 latent frames (12 pixel frames); nearest: 9"),
        (0, "--frames 0 is not a length"),
        (
            5000,
            "1251 latent frames exceed the model's 1024 positions; "
            "longest: 1023 latent frames (4089 pixel frames)",
        ),
    ],
)
def test_pixel_frames_that_do_not_fit(config, wanted, message):
    with pytest.raises(UsageError) as caught:
        fit_pixel_frames(config, wanted)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("seconds", "latent"), [(0.01, 3), (0.5625, 3), (0.57, 6), (5, 21), (5.0625, 21), (5.07, 24)]
)
def test_seconds_are_rounded_up(config, seconds, latent):
    assert fit_seconds(config, seconds).video.frames == latent


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_seconds_that_are_no_length(config, seconds):
    with pytest.raises(UsageError, match="is not a length"):
        fit_seconds(config, seconds)
