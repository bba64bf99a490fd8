"""Frames of one video on disk, as they are, while they are compared: a long video need not fit memory."""

import math
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from qvg_cli.errors import QvgError
from qvg_cli.video.io import Frames

_SPARE_BYTES = 256 * 1024 * 1024


class FrameSpool(AbstractContextManager["FrameSpool"]):
    """Written frame after frame, read in any order, gone when closed and when the program dies.

    A file in `folder` without a name holds the pixels, three bytes each.
    """

    def __init__(self, folder: Path, *, height: int, width: int) -> None:
        self.num_frames = 0
        self._folder = folder
        self._shape = (height, width, 3)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115, it outlives this function

    def write(self, frames: Frames) -> None:
        """Append frames, `[n, height, width, 3]` uint8, `ValueError` if not; `QvgError` on a full disk."""
        if frames.shape[1:] != self._shape or frames.dtype != np.uint8:
            raise ValueError(
                f"frames of shape {frames.shape} and dtype {frames.dtype} are not {self._shape} uint8"
            )
        try:
            self._file.write(np.ascontiguousarray(frames).data)
            self._file.flush()
        except OSError as error:
            raise QvgError(
                f"cannot write uncoded frames to {self._folder}: {error.strerror}", hint="free some space"
            ) from error
        self.num_frames += len(frames)

    def read(self, start: int, stop: int) -> Frames:
        """Frames `start .. stop - 1`, `[n, height, width, 3]` uint8."""
        frames = np.empty((stop - start, *self._shape), np.uint8)
        os.preadv(self._file.fileno(), [frames.data], start * math.prod(self._shape))
        return frames

    def __exit__(self, *error: object) -> None:
        self._file.close()


def check_space(folder: Path, *, num_frames: int, height: int, width: int) -> None:
    """Make sure that `num_frames` frames fit the disk of an existing folder; else a `QvgError`."""
    needed = num_frames * height * width * 3 + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise QvgError(
            f"comparing needs {needed / 2**30:.1f} GiB for uncoded frames, "
            f"and {folder} has {free / 2**30:.1f} GiB free",
            hint="use --out on another disk, fewer --seconds, or fewer presets at a time",
        )
