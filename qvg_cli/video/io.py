"""MP4 files, a frame at a time: nothing is resized or held, and a file has its name only when whole."""

import os
import re
import shutil
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from qvg_cli.errors import MissingModelError, QvgError, UsageError
from qvg_cli.video.decode import Source
from qvg_cli.video.render import Frames as Frames
from qvg_cli.video.render import Renderer

_LEAST_FREE_BYTES = 1 << 20
_LEAST_VERSION = (7, 1)
_KEYFRAME_INTERVAL = 32
LENGTH = ("-movie_timescale", "48000")
"""In which parts of a second a file says how long it is: by milliseconds, parts would overlap when joined."""


def check_encoder() -> None:
    """Make sure that there is an ffmpeg to write with; else a `MissingModelError`."""
    hint = "install the package imageio-ffmpeg, which contains it, or set IMAGEIO_FFMPEG_EXE"
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise MissingModelError("ffmpeg not found", hint=hint) from error
    if shutil.which(program) is None:
        raise MissingModelError(f"no ffmpeg at {program}", hint=hint)
    version = re.match(r"n?(\d+)\.(\d+)", imageio_ffmpeg.get_ffmpeg_version())
    if version and tuple(map(int, version.groups())) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        raise MissingModelError(
            f"ffmpeg {version[1]}.{version[2]} at {program} is too old; {least} is needed", hint=hint
        )


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Writes one H.264 file that plays up to where the writing stopped, whatever stopped it.

    Frames go to `<name>.part` until `finish` gives the file its name. If this process dies, ffmpeg closes the
    part; if ffmpeg dies or the disk is full, the part plays up to its last whole group of frames. Height and
    width are even, as the yuv420p of H.264 players needs, or a `UsageError`.
    """

    def __init__(self, path: Path, *, height: int, width: int, fps: int) -> None:
        for name, size in (("height", height), ("width", width)):
            if size % 2:
                raise UsageError(f"{name} {size} is odd, MP4 needs it even; nearest: {size - 1}, {size + 1}")
        self.path = path
        self.num_frames = 0
        self._has_failed = False
        self._shape = (height, width, 3)
        self._part = path.with_name(f"{path.name}.part")
        # crf 16 is hard to tell from the source. A hybrid file is made of fragments that play on their own
        # while it grows, and becomes a plain MP4 at its end; any other that is cut off does not play at all.
        params = ["-crf", "16", "-g", str(_KEYFRAME_INTERVAL), "-movflags", "+hybrid_fragmented"]
        # The part's name does not end in .mp4, so the format is named.
        params += [*LENGTH, "-flush_packets", "1", "-f", "mp4"]
        self._encoder: Generator[None, Any, None] = imageio_ffmpeg.write_frames(
            # Absolute: ffmpeg takes the begin of a name such as a:b for a protocol.
            str(self._part.absolute()),
            (width, height),
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=params,
        )
        self._encoder.send(None)

    def write(self, frames: Frames) -> None:
        """Append frames, `[n, height, width, 3]` uint8 RGB, or `ValueError`; `QvgError` if ffmpeg stops."""
        if frames.shape[1:] != self._shape or frames.ndim != 4 or frames.dtype != np.uint8:
            raise ValueError(
                f"frames of shape {frames.shape} and dtype {frames.dtype} do not fit a video of "
                f"[n, {', '.join(map(str, self._shape))}] uint8"
            )
        for frame in frames:
            try:
                self._encoder.send(np.ascontiguousarray(frame))
            except (OSError, StopIteration) as error:
                self._has_failed = True
                raise self._failure(f"ffmpeg stopped after {self.num_frames} frames") from error
            self.num_frames += 1

    def finish(self) -> None:
        """Close the file and give it its name; without a frame there is no file.

        Afterwards `num_frames` is what the file holds: fewer than sent, by a `QvgError`, if ffmpeg could not
        write them all.
        """
        self._encoder.close()
        num_kept = count_frames(self._part) if self.num_frames and self._part.exists() else 0
        if num_kept:
            os.replace(self._part, self.path)
        else:
            self._part.unlink(missing_ok=True)
        num_written, self.num_frames = self.num_frames, num_kept
        if num_kept < num_written and not self._has_failed:
            raise self._failure(f"ffmpeg wrote {num_kept} of {num_written} frames")

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self.finish()
        else:
            self._encoder.close()

    def _failure(self, what: str) -> QvgError:
        return disk_error(self.path, what, hint="see the message of ffmpeg above")


def disk_error(path: Path, what: str, *, hint: str | None = None) -> QvgError:
    """The error for a video that cannot be written to `path`: its folder's state, or else `what`."""
    folder = path.parent
    if not folder.is_dir():
        return QvgError(f"cannot write {path}: its folder is gone")
    if shutil.disk_usage(folder).free < _LEAST_FREE_BYTES:
        return QvgError(f"no space left in {folder}", hint="free some space, or use another --out")
    return QvgError(what, hint=hint)


def read_frames(path: Path, *, start_seconds: float = 0.0) -> Generator[Frames]:
    """Frames `[height, width, 3]` uint8 RGB of a video file from a moment on, as large as it is shown."""
    with Source(path) as source:
        renderer = Renderer(pixel_aspect=source.pixel_aspect)
        for frame in source.frames(start_seconds=start_seconds):
            yield renderer.render(frame)


def count_frames(path: Path) -> int:
    """Frames of a video file; 0 if it cannot be read as one."""
    return count_frames_and_seconds(path)[0]


def count_frames_and_seconds(path: Path) -> tuple[int, float]:
    """Frames of a video file, and how long it is; 0 and 0 if it cannot be read as one."""
    try:
        with Source(path) as source:
            num_frames = source.count_packets()
            return num_frames, float(num_frames / source.fps)
    except UsageError:
        return 0, 0.0
