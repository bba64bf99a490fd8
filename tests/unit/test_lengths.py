"""Lengths as a person gives them, and the nearest that chunks can make."""

import pytest

from qvg_cli.config.load import Request
from qvg_cli.engine.lengths import fit_pixel_frames, fit_seconds, rounding_note
from qvg_cli.errors import UsageError
from qvg_cli.models.registry import load_config, plan_video


@pytest.fixture
def config():
    return load_config(Request()).config


@pytest.mark.parametrize(("pixel", "latent"), [(1, 3), (9, 3), (21, 6), (81, 21), (82, 24), (4089, 1023)])
def test_pixel_frames_are_rounded_up(config, pixel, latent):
    assert fit_pixel_frames(config, pixel).video.frames == latent


@pytest.mark.parametrize(("wanted", "latent"), [(1, 3), (10, 6), (82, 24), (93, 24), (94, 27)])
def test_pixel_frames_are_rounded_up_and_it_is_said(config, wanted, latent):
    fitted = fit_pixel_frames(config, wanted)
    assert fitted.video.frames == latent
    made = 4 * latent - 3
    said = f"--frames {wanted} rounded up to {made} frames, a whole number of chunks"
    note = rounding_note(fitted, plan_video(fitted), seconds=None, frames=wanted)
    assert note == (None if made == wanted else said)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (0, "--frames 0 is not a valid length"),
        (
            5000,
            "1251 latent frames exceed the model's 1024 positions; "
            "longest: 1023 latent frames (4089 pixel frames)",
        ),
    ],
)
def test_pixel_frames_that_are_no_length(config, wanted, message):
    with pytest.raises(UsageError) as caught:
        plan_video(fit_pixel_frames(config, wanted))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("seconds", "latent"), [(0.01, 3), (0.5625, 3), (0.57, 6), (5, 21), (5.0625, 21), (5.07, 24)]
)
def test_seconds_are_rounded_up(config, seconds, latent):
    assert fit_seconds(config, seconds).video.frames == latent


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_seconds_that_are_no_length(config, seconds):
    with pytest.raises(UsageError, match="is not a valid length"):
        fit_seconds(config, seconds)
