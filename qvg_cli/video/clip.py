"""Any video file as frames of one size and rate: scaled to cover it, cut at the centre. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from qvg_cli.errors import QvgError, UsageError
from qvg_cli.video.io import LOCAL_ONLY, TRUE_COLORS, Frames, read_frames, source_name

_UNREADABLE = (OSError, RuntimeError, LookupError, ValueError, AssertionError, StopIteration)
"""What reading raises where ffmpeg finds no picture."""


@dataclass(frozen=True)
class Clip:
    """A video file that can be read.

    Attributes:
        height: Of a frame as it is shown, in pixels.
        fps: Frames a second, on average.
    """

    path: Path
    height: int
    width: int
    fps: float

    def share_kept(self, height: int, width: int) -> float:
        """How much of a frame is left when it covers `height` x `width`, from 0 to 1."""
        ratio = (self.width / self.height) / (width / height)
        return min(ratio, 1 / ratio)


def open_clip(path: Path) -> Clip:
    """Look at a video file.

    Raises:
        UsageError: It cannot be read, or it is not a video.
    """
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    reader = imageio_ffmpeg.read_frames(source_name(path), input_params=LOCAL_ONLY)
    try:
        about = next(reader)
        width, height = about["size"]
        next(reader)
        fps = float(about["fps"])
    except _UNREADABLE as error:
        raise _not_a_video(path) from error
    finally:
        reader.close()
    if not (width > 0 and height > 0 and fps > 0):
        raise _not_a_video(path)
    return Clip(path, height, width, fps)


def count_fitted(clip: Clip, fps: int) -> int:
    """How many frames `fitted_frames` gives at this rate; decodes the whole file to be sure."""
    return sum(1 for _ in _read(clip.path, f"fps={fps},scale=16:16"))


def fitted_frames(path: Path, *, height: int, width: int, fps: int) -> Iterator[Frames]:
    """Frames `[height, width, 3]` uint8 RGB of a video file, `fps` a second.

    Frames are left out, or shown twice, where the file has more or fewer of them.

    Raises:
        QvgError: The file cannot be read.
    """
    scale = f"scale={width}:{height}:force_original_aspect_ratio=increase:flags={TRUE_COLORS}"
    return _read(path, f"fps={fps},{scale},crop={width}:{height}")


def _read(path: Path, filters: str) -> Iterator[Frames]:
    try:
        yield from read_frames(path, filters=filters)
    except _UNREADABLE as error:
        raise QvgError(f"cannot read the video {path}: {error}") from error


def _not_a_video(path: Path) -> UsageError:
    return UsageError(f"{path} is not a video that can be read", hint="MP4, WebM and MOV can be")
