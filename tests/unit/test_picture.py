"""Pictures of any size and mode become the first frame, or are refused clearly."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageCms

from qvg_cli.errors import UsageError
from qvg_cli.video.picture import address_in, fill_frame, fitting_note, is_shipped, open_image


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


def pixels(path):
    return np.asarray(open_image(str(path))).astype(int)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_dark_levels_of_16_bits_stay_dark(tmp_path, suffix):
    levels = np.arange(256, dtype=np.uint16)[None].repeat(4, axis=0)
    Image.fromarray(levels).save(tmp_path / f"dark.{suffix}")
    assert pixels(tmp_path / f"dark.{suffix}").max() == 1


def test_a_tiff_whose_zero_is_white_is_not_a_negative(tmp_path):
    Image.fromarray(np.uint16([[0, 65535]])).save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    # The tag of photometric interpretation, one short: from black is zero to white is zero.
    place = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    data[place] = 0
    (tmp_path / "a.tif").write_bytes(data)
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [255, 0]


def test_floats_go_from_black_at_0_to_white_at_1(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (4, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.tif")
    assert np.array_equal(pixels(tmp_path / "ramp.tif")[0, :, 0], np.arange(256))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (np.float32([[0, np.nan]]), "has levels that are not numbers"),
        (np.float32([[0, np.inf]]), "has levels that are not numbers"),
        (np.float32([[0, 255]]), "has levels from 0 to 255; those of a picture of floating point are 0 for"),
        (np.float32([[-0.5, 1]]), "has levels from -0.5 to 1; "),
        (np.int32([[0, 255]]), "has levels of 32 signed bits, whose white is not known"),
    ],
)
def test_levels_of_an_unknown_range_are_refused(tmp_path, levels, message):
    Image.fromarray(levels).save(tmp_path / "a.tif")
    with warnings.catch_warnings(action="error"), pytest.raises(UsageError, match=message):
        open_image(str(tmp_path / "a.tif"))


@pytest.mark.parametrize(("suffix", "compression"), [("png", None), ("tif", None), ("tif", "tiff_lzw")])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_once(tmp_path, suffix, compression, dtype, orientation):
    if (suffix, dtype) == ("png", np.float32):
        pytest.skip("PNG has no floats")
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    levels = (np.arange(12).reshape(3, 4) / 15 * white).astype(dtype)
    image = Image.fromarray(levels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif, compression=compression)
    upright = [
        levels,
        levels[:, ::-1],
        levels[::-1, ::-1],
        levels[::-1],
        levels.T,
        np.rot90(levels, -1),
        levels[::-1, ::-1].T,
        np.rot90(levels),
    ][orientation - 1]
    found = pixels(tmp_path / f"a.{suffix}")[..., 0]
    assert found.shape == upright.shape
    assert np.abs(found - upright.astype(float) / white * 255).max() <= 1


def test_a_clear_level_of_16_bits_is_white(tmp_path):
    levels = np.full((4, 4), 300, np.uint16)
    levels[0] = 30000
    Image.fromarray(levels).save(tmp_path / "a.png", transparency=300)
    found = pixels(tmp_path / "a.png")
    assert (found[1:].min(), found[0].max()) == (255, 117)


def display_p3():
    """A profile of phones: that of sRGB with other primaries."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.51512, 0.2412, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.1571, 0.06657, 0.78407),
    }
    for index in range(struct.unpack(">I", data[128:132])[0]):
        name, start, _ = struct.unpack(">4sII", data[132 + 12 * index : 144 + 12 * index])
        if name in primaries:
            values = (round(value * 65536) for value in primaries[name])
            data[start + 8 : start + 20] = struct.pack(">3i", *values)
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_colours_are_turned_to_srgb_by_the_profile(tmp_path, mode, suffix):
    if (mode, suffix) == ("P", "webp"):
        pytest.skip("WebP has no palettes")
    green = Image.new("RGB", (8, 8), (0, 255, 0))
    profile = ImageCms.ImageCmsProfile(io.BytesIO(display_p3()))
    wide = ImageCms.profileToProfile(green, ImageCms.createProfile("sRGB"), profile, outputMode="RGB")
    options = {"lossless": True} if suffix == "webp" else {}
    wide = wide.quantize(2) if mode == "P" else wide.convert(mode)
    wide.save(tmp_path / f"a.{suffix}", icc_profile=display_p3(), **options)
    assert np.abs(pixels(tmp_path / f"a.{suffix}") - (0, 255, 0)).max() <= 6
    note = fitting_note(str(tmp_path / f"a.{suffix}"), height=8, width=8)
    assert "its colours are converted from " in note
    assert note.endswith(" to sRGB")


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "1"])
def test_colours_of_srgb_are_left_as_they_are(tmp_path, mode):
    noise = Image.effect_noise((32, 32), 90).convert(mode)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise.save(tmp_path / "plain.png")
    noise.save(tmp_path / "tagged.png", icc_profile=profile)
    assert np.array_equal(pixels(tmp_path / "plain.png"), pixels(tmp_path / "tagged.png"))


@pytest.mark.parametrize("profile", [b"no profile", display_p3()[:400]])
def test_a_broken_profile_is_told_and_left_out(tmp_path, profile):
    Image.new("RGB", (8, 8), (10, 200, 30)).save(tmp_path / "a.png", icc_profile=profile)
    assert pixels(tmp_path / "a.png")[0, 0].tolist() == [10, 200, 30]
    note = fitting_note(str(tmp_path / "a.png"), height=8, width=8)
    assert note.endswith("; its colour profile cannot be read; its colours are taken as sRGB")


def test_a_profile_of_other_colours_is_told_and_left_out(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 0, 0)).save(tmp_path / "a.jpg", icc_profile=display_p3())
    note = fitting_note(str(tmp_path / "a.jpg"), height=8, width=8)
    assert note.endswith("; its colour profile is of RGB, which its colours are not, and is left out")


def test_pillow_s_own_warnings_are_not_shown(tmp_path):
    Image.new("L", (9500, 9500)).save(tmp_path / "large.png")
    with warnings.catch_warnings(action="error"):
        assert open_image(str(tmp_path / "large.png")).size == (9500, 9500)


def test_what_is_cut_away_is_told(tmp_path):
    Image.new("RGBA", (100, 200), (0, 0, 0, 9)).save(tmp_path / "a.png")
    note = fitting_note(str(tmp_path / "a.png"), height=32, width=64)
    assert note.endswith(
        "a.png, 100 x 200, fills the first frame, 64 x 32; 75% of it is cropped; "
        "its transparent parts are shown on white"
    )


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("https://a.org/b.png", "https://a.org/b.png"),
        ("https:/a.org/b.png", "https://a.org/b.png"),
        ("FTP:/a.org/b.png", "FTP://a.org/b.png"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
        ("a.png", None),
        ("some folder/a:b.png", None),
        ("c:/a.png", None),
    ],
)
def test_an_address_is_told_from_a_file(name, address):
    assert address_in(name) == address
    if address is not None:
        with pytest.raises(UsageError, match="is a URL, not a file") as caught:
            open_image(name)
        assert str(caught.value).startswith(address)
