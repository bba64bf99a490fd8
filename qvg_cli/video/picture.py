"""A picture of any size and mode, made to fill the video's first frame. No torch.

Source: Tencent-Hunyuan/HY-WorldPlay, `wan/generate.py`: scaled to cover the frame (Lanczos), cut at the
centre. The reference may leave the scaled picture one pixel short and pads it black; here it always covers
the frame.
"""

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from qvg_cli.errors import UsageError

_SHIPPED = Path(__file__).parents[1] / "data" / "walk"
_NO_CUT = 0.005
"""Of a picture: what is not worth a word."""
_LONGEST_ADDRESS, _LONGEST_NAME = 200, 60
_SAME_LEVELS = 2
_LEAST_SIDEWAYS = 5
"""Orientations of EXIF from this on swap height and width."""
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO = 0
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Pillow's mode for what a profile is of."""


def place(
    width: int, height: int, *, target_width: int, target_height: int
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """How a picture covers the target: its size after scaling; left, top, right, bottom of its kept part."""
    scale = max(target_width / width, target_height / height)
    resized = max(target_width, int(width * scale)), max(target_height, int(height * scale))
    left, top = (resized[0] - target_width) // 2, (resized[1] - target_height) // 2
    return resized, (left, top, left + target_width, top + target_height)


def is_shipped(name: str) -> bool:
    """Whether `name` is a picture of the package's own, not a file."""
    return "/" not in name and (_SHIPPED / f"{name}.jpg").is_file()


def address_in(name: str) -> str | None:
    """The address that is given instead of a file; `None` for a file. As a path it has lost a slash."""
    match = re.match(r"[a-z][a-z0-9+.-]+:/+|data:", name, re.IGNORECASE)
    if match is None or os.path.exists(name):
        return None
    scheme = match[0].rstrip("/")
    whole = f"{scheme}//{name[match.end() :]}" if match[0].endswith("/") else name
    return whole if len(whole) <= _LONGEST_ADDRESS else f"{whole[:_LONGEST_ADDRESS]}..."


def open_image(name: str) -> Image.Image:
    """Read a picture as sRGB, turned upright; of a moving one the first frame, transparent parts on white.

    Args:
        name: A file, or a name without a suffix for a picture that ships with the package.
    """
    return _read(name)[0]


def fitting_note(name: str, *, height: int, width: int) -> str:
    """How a picture is made the first frame, `height` x `width`: what is cut away and changed."""
    image, changes = _read(name)
    scale = max(width / image.width, height / image.height)
    cut = 1 - width * height / (image.width * image.height * scale**2)
    told = f"{name}, {image.width} x {image.height}, fills the first frame, {width} x {height}"
    return "; ".join([told, *([f"{cut:.0%} of it is cropped"] if cut > _NO_CUT else []), *changes])


def fill_frame(image: Image.Image, *, height: int, width: int) -> NDArray[np.uint8]:
    """`[height, width, 3]` pixels of an RGB picture that covers the frame."""
    size, box = place(*image.size, target_width=width, target_height=height)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS).crop(box), dtype=np.uint8)


def _read(name: str) -> tuple[Image.Image, list[str]]:
    """A picture as sRGB, and what of it was changed for that."""
    if (address := address_in(name)) is not None:
        raise UsageError(f"{address} is a URL, not a file", hint="save the picture to a file first")
    path = _SHIPPED / f"{name}.jpg" if is_shipped(name) else Path(name).expanduser()
    try:
        # Pillow warns of what it reads all the same, in lines of its own source.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            _load(image)
            levels = _eight_bits(image, path)
            return _to_srgb(ImageOps.exif_transpose(levels), image.info.get("icc_profile"))
    except UnidentifiedImageError as error:
        raise UsageError(
            f"{path} is not a picture that can be read",
            hint="supported: PNG, JPEG, WebP and others that Pillow opens",
        ) from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"the picture {path} is too large: {error}", hint="use a smaller one") from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the picture {path}: {reason}") from error


def _load(image: Image.Image) -> None:
    """Read the pixels, after which a TIFF is upright and others are not."""
    is_raw = isinstance(image, ImageFile.ImageFile) and any(tile.codec_name == "raw" for tile in image.tile)
    is_sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= _LEAST_SIDEWAYS
    if image.format == "TIFF" and is_sideways and is_raw:
        # Pillow has swapped the sides already, and would take the rows of what is not compressed for columns.
        image._size = (image.height, image.width)
    image.load()


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Grey levels deeper than 8 bits, by the range of their kind, as `L` or `LA`; others as they are."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    levels = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        if not np.isfinite(levels).all():
            raise UsageError(
                f"the picture {path} has levels that are not numbers", hint="save it as PNG with 8 or 16 bits"
            )
        white, least, most = 1.0, levels.min(), levels.max()
        if least < 0 or most > 1:
            raise UsageError(
                f"the picture {path} has levels from {least:g} to {most:g}; those of a picture of floating "
                "point are 0 for black to 1 for white",
                hint="scale them, or save it as PNG with 8 or 16 bits",
            )
    else:
        white = float(_white_level(image, path))
    found = np.rint(np.clip(levels / white, 0, 1) * 255).astype(np.uint8)
    tags = getattr(image, "tag_v2", {})
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        found = 255 - found
    shown = Image.fromarray(found)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        shown.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    shown.info["exif"] = image.getexif().tobytes()
    return shown


def _white_level(image: Image.Image, path: Path) -> int:
    """The level that is white in a picture of whole numbers."""
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, (16,))[0]
    is_signed = getattr(image, "tag_v2", {}).get(_TIFF_SAMPLE_FORMAT, (1,))[0] != 1
    if bits > 16 or is_signed:
        kind = "signed " if is_signed else ""
        raise UsageError(
            f"the picture {path} has levels of {bits} {kind}bits, whose white is not known",
            hint="save it as PNG with 8 or 16 bits",
        )
    return (1 << int(bits)) - 1


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, list[str]]:
    changes = []
    alpha = None
    if image.has_transparency_data:
        layers = image.convert("RGBA" if image.mode not in ("L", "LA", "La") else "LA")
        image, alpha = layers.convert(layers.mode[:-1]), layers.getchannel("A")
    if image.mode not in _MODE_OF_SPACE.values():
        image = image.convert("L" if image.mode == "1" else "RGB")
    if profile:
        image, change = _by_profile(image, profile)
        changes += change
    elif image.mode == "LAB":
        image, _ = _convert(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    image = image.convert("RGB")
    if alpha is not None and alpha.getextrema()[0] != 255:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
        changes.append("its transparent parts are shown on white")
    return image, changes


def _by_profile(image: Image.Image, data: bytes) -> tuple[Image.Image, list[str]]:
    """Colours by a profile as sRGB, and what is to be said of it; those of sRGB stay as they are."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if image.mode != _MODE_OF_SPACE.get(space):
            return image, [f"its colour profile is of {space}, which its colours are not, and is left out"]
        return _convert(image, profile)
    except (ImageCms.PyCMSError, OSError):
        return image, ["its colour profile cannot be read; its colours are taken as sRGB"]


def _convert(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> tuple[Image.Image, list[str]]:
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        image.mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if image.mode == "RGB":
        # A grid of colours that a profile of sRGB leaves where they are, but for rounding.
        steps = np.linspace(0, 255, 9).round().astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
        changed = np.asarray(ImageCms.applyTransform(Image.fromarray(grid), transform))
        if np.abs(changed.astype(int) - grid).max() <= _SAME_LEVELS:
            return image, []
    name = " ".join(ImageCms.getProfileDescription(profile).split())[:_LONGEST_NAME]
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted, [f"its colours are converted from {name or 'its profile'} to sRGB"]
