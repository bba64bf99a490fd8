"""The side-by-side picture: what is where, the error's colours, sizes that an MP4 can hold."""

import numpy as np
import pytest

from qvg_cli.comparison.video import ERROR_LEVELS, SideBySide, error_map


def test_equal_pixels_are_black_and_large_errors_are_bright():
    baseline = np.full((2, 3, 3), 100, np.uint8)
    frame = baseline.copy()
    frame[0, 0] = [100, 100, 100 + ERROR_LEVELS // 2]
    frame[0, 1] = [100 - ERROR_LEVELS, 100, 100]
    frame[0, 2] = [255, 0, 0]
    brightness = error_map(baseline, frame).astype(int).sum(axis=-1)
    assert (brightness[1] <= 4).all()
    assert brightness[1, 0] < brightness[0, 0] < brightness[0, 1] == brightness[0, 2]


def test_the_error_does_not_wrap_around():
    dark, bright = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert np.array_equal(error_map(dark, bright), error_map(bright, dark))


@pytest.mark.parametrize("count", [2, 3, 5, 9])
@pytest.mark.parametrize(("height", "width"), [(32, 64), (128, 224), (480, 832), (704, 1280)])
def test_every_size_fits_a_screen_and_an_mp4(count, height, width):
    pictures = SideBySide(count, height=height, width=width)
    assert pictures.size[0] % 2 == pictures.size[1] % 2 == 0
    assert pictures.size[1] <= 1920 + 4 * 4
    frames = [np.zeros((height, width, 3), np.uint8)] * count
    assert pictures.draw(frames, ["a"] * count).shape == (*pictures.size, 3)


def test_frames_are_enlarged_by_a_whole_factor_and_placed_in_order():
    generator = np.random.default_rng(0)
    frames = list(generator.integers(0, 255, (2, 32, 64, 3), np.uint8))
    picture = SideBySide(2, height=32, width=64).draw(frames, ["one", "two"])
    # 64 pixels become 256, four each; captions are 24 high, gaps 4.
    assert np.array_equal(picture[24 : 24 + 128 : 4, 0:256:4], frames[0])
    assert np.array_equal(picture[24 : 24 + 128 : 4, 260 : 260 + 256 : 4], frames[1])
    below = picture[24 + 128 + 4 : 24 + 128 + 4 + 128 : 4, 260 : 260 + 256 : 4]
    assert np.array_equal(below, error_map(frames[0], frames[1]))


def test_a_long_caption_stays_in_its_column():
    frames = [np.zeros((32, 64, 3), np.uint8)] * 2
    pictures = SideBySide(2, height=32, width=64)
    long, short = (pictures.draw(frames, [caption, "b"]) for caption in ("a" * 200, "a"))
    assert np.array_equal(long[:, 256:], short[:, 256:])
