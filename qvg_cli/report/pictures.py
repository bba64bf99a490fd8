"""Small pictures for pages. No torch."""

from __future__ import annotations

import io
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from qvg_cli.video.io import Frames

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


def poster_jpeg(path: Path) -> bytes | None:
    """A frame from the middle of a video; none if the file does not play."""
    try:
        duration = _first_frame(path, 0.0)[1]
        frame = _first_frame(path, duration / 2)[0]
    except (OSError, RuntimeError, StopIteration):
        return None
    return jpeg(frame, max_width=_POSTER_WIDTH)


def _first_frame(path: Path, seconds: float) -> tuple[Frames, float]:
    """The first frame from `seconds` on, and the duration of the whole file."""
    reader = imageio_ffmpeg.read_frames(str(path), input_params=["-ss", f"{seconds:.3f}"])
    try:
        meta = next(reader)
        width, height = meta["size"]
        frame = np.frombuffer(next(reader), np.uint8).reshape(height, width, 3)
        return frame, float(meta["duration"])
    finally:
        reader.close()
