"""Small pictures for pages. No torch."""

import io
from pathlib import Path

from PIL import Image

from qvg_cli.errors import UsageError
from qvg_cli.video.io import Frames, read_frames

_POSTER_WIDTH = 480


def jpeg(picture: Frames, *, max_width: int) -> bytes:
    """A picture `[height, width, 3]` as a JPEG, made smaller if it is wider."""
    image = Image.fromarray(picture)
    if image.width > max_width:
        size = (max_width, round(image.height * max_width / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def poster_jpeg(path: Path, seconds: float) -> bytes | None:
    """A frame from the middle of a video that lasts `seconds`; `None` if the file does not play."""
    frames = read_frames(path, start_seconds=seconds / 2)
    try:
        frame = next(frames)
    except (OSError, RuntimeError, ValueError, StopIteration, UsageError):
        return None
    finally:
        frames.close()
    return jpeg(frame, max_width=_POSTER_WIDTH)
