"""Frames of one video on disk, as they are, while they are compared: a long video need not fit memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType

import numpy as np

from qvg_cli.errors import QvgError
from qvg_cli.video.io import Frames

_SPARE_BYTES = 256 * 1024 * 1024


class FrameSpool:
    """Written frame after frame, read in any order, gone when closed.

    Args:
        path: Of the file that holds the pixels, three bytes each.
    """

    def __init__(self, path: Path, *, height: int, width: int) -> None:
        self.path = path
        self.num_frames = 0
        self._shape = (height, width, 3)
        self._file = path.open("wb")

    def write(self, frames: Frames) -> None:
        """Append frames, `[n, height, width, 3]` uint8.

        Raises:
            ValueError: Another shape or dtype.
            QvgError: The disk is full.
        """
        if frames.shape[1:] != self._shape or frames.dtype != np.uint8:
            raise ValueError(
                f"frames of shape {frames.shape} and dtype {frames.dtype} are not {self._shape} uint8"
            )
        try:
            self._file.write(np.ascontiguousarray(frames).data)
            self._file.flush()
        except OSError as error:
            raise QvgError(f"cannot write {self.path}: {error.strerror}", hint="free some space") from error
        self.num_frames += len(frames)

    def read(self, start: int, stop: int) -> Frames:
        """Frames `start .. stop - 1`, `[n, height, width, 3]` uint8."""
        held = np.memmap(self.path, np.uint8, mode="r", shape=(self.num_frames, *self._shape))
        return np.array(held[start:stop])

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> FrameSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_space(folder: Path, *, num_frames: int, height: int, width: int) -> None:
    """Make sure that `num_frames` frames fit the disk of an existing folder.

    Raises:
        QvgError: They do not.
    """
    needed = num_frames * height * width * 3 + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise QvgError(
            f"comparing needs {needed / 2**30:.1f} GiB for uncoded frames, "
            f"and {folder} has {free / 2**30:.1f} GiB free",
            hint="give a folder on another disk with --out, fewer --seconds, or fewer presets at a time",
        )
