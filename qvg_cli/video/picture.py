"""A picture of any size and mode, made to fill the video's first frame. No torch.

Source: Tencent-Hunyuan/HY-WorldPlay, `wan/generate.py`: scaled to cover the frame (Lanczos), cut at the
centre. The reference may leave the scaled picture one pixel short and pads it black; here it always covers
the frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from qvg_cli.errors import UsageError

_SHIPPED = Path(__file__).parents[1] / "data" / "walk"


@dataclass(frozen=True)
class Placement:
    """How a picture fills a frame.

    Attributes:
        resized: Width and height after scaling.
        crop_box: Left, top, right and bottom of the part that is kept.
    """

    resized: tuple[int, int]
    crop_box: tuple[int, int, int, int]


def place(width: int, height: int, *, target_width: int, target_height: int) -> Placement:
    """Scale `width` x `height` to cover the target, and keep the centre."""
    scale = max(target_width / width, target_height / height)
    resized = max(target_width, int(width * scale)), max(target_height, int(height * scale))
    left, top = (resized[0] - target_width) // 2, (resized[1] - target_height) // 2
    return Placement(resized, (left, top, left + target_width, top + target_height))


def is_shipped(name: str) -> bool:
    """Whether `name` is a picture of the package's own, not a file."""
    return "/" not in name and (_SHIPPED / f"{name}.jpg").is_file()


def open_image(name: str) -> Image.Image:
    """Read a picture as RGB, turned upright; of a moving one the first frame, transparent parts on white.

    Args:
        name: A file, or a name without a suffix for a picture that ships with the package.

    Raises:
        UsageError: The file cannot be read or is not a picture.
    """
    path = _SHIPPED / f"{name}.jpg" if is_shipped(name) else Path(name).expanduser()
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright)
    except UnidentifiedImageError as error:
        raise UsageError(
            f"{path} is not a picture that can be read", hint="PNG, JPEG and WebP can be"
        ) from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"the picture {path} is too large: {error}", hint="give a smaller one") from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the picture {path}: {reason}") from error


def fill_frame(image: Image.Image, *, height: int, width: int) -> NDArray[np.uint8]:
    """`[height, width, 3]` pixels of an RGB picture that covers the frame."""
    placement = place(*image.size, target_width=width, target_height=height)
    resized = image.resize(placement.resized, Image.Resampling.LANCZOS)
    return np.asarray(resized.crop(placement.crop_box), dtype=np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # Deep greys: Pillow's own conversion would cut them off at 255.
        levels = np.asarray(image, dtype=np.float64)
        deepest = 65535.0 if levels.max() > 255 else 255.0
        image = Image.fromarray(np.rint(np.clip(levels / deepest, 0, 1) * 255).astype(np.uint8))
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")
