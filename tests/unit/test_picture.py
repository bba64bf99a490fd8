"""Pictures of any size and mode become the first frame, or are refused clearly."""

import numpy as np
import pytest
from PIL import Image

from qvg_cli.errors import UsageError
from qvg_cli.video.picture import fill_frame, is_shipped, open_image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F", "HSV"])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (67, 31)])
def test_every_mode_and_size_fills_the_frame(tmp_path, mode, size):
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "F": "tiff", "HSV": "png"}.get(mode, "png")
    picture = Image.new("RGB", size) if mode == "HSV" else Image.new(mode, size)
    picture.save(tmp_path / f"picture.{suffix}")
    image = open_image(str(tmp_path / f"picture.{suffix}"))
    assert image.mode == "RGB"
    assert fill_frame(image, height=32, width=64).shape == (32, 64, 3)


def test_the_camera_s_orientation_is_respected(tmp_path):
    sideways = Image.new("RGB", (40, 20), "black")
    sideways.paste("white", (0, 0, 20, 20))
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "sideways.png", exif=exif)
    upright = np.asarray(open_image(str(tmp_path / "sideways.png")))
    assert upright.shape == (40, 20, 3)
    assert upright[0].min() == 255
    assert upright[-1].max() == 0


def test_deep_greys_keep_their_levels(tmp_path):
    levels = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    found = np.asarray(open_image(str(tmp_path / "deep.png")))[0, :, 0]
    assert np.abs(found.astype(int) - np.arange(256)).max() <= 1


def test_transparent_parts_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(open_image(str(tmp_path / "clear.png"))).min() == 255


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the picture"),
        (b"", "is not a picture"),
        (b"no picture at all", "is not a picture"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, content, message):
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        open_image(str(path))


def test_a_folder_and_half_a_picture_are_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read the picture"):
        open_image(str(tmp_path))
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    half = (tmp_path / "whole.png").read_bytes()[:1500]
    (tmp_path / "half.png").write_bytes(half)
    with pytest.raises(UsageError, match="picture"):
        open_image(str(tmp_path / "half.png"))


def test_the_picture_of_the_package_is_whole_and_as_large_as_the_video():
    assert is_shipped("park")
    assert open_image("park").size == (1280, 704)
    assert not is_shipped("./park")
    assert not is_shipped("park.jpg")
