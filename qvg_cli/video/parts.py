"""A video as parts, each a whole MP4 of some frames, and the file that they make when joined.

Every part begins with a key frame and is coded on its own, so the joined video has the same frames whenever
its parts were made.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from qvg_cli.errors import QvgError
from qvg_cli.video.io import Frames, count_frames, disk_error

QUALITY = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16")


def encode_part(path: Path, frames: Frames, *, fps: int) -> None:
    """Write frames, `[n, height, width, 3]` uint8 RGB, as a file of their own.

    Raises:
        QvgError: ffmpeg failed, for example because the disk is full.
    """
    _, height, width, _ = frames.shape
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    _run(
        [*source, "-an", *QUALITY, "-f", "mp4", str(path.absolute())], path, np.ascontiguousarray(frames).data
    )


def join_parts(parts: Sequence[Path], path: Path, *, num_frames: int) -> None:
    """Write the frames of `parts`, all of one folder, to one file, bit for bit.

    Args:
        num_frames: Of all parts together.

    Raises:
        QvgError: ffmpeg failed, or not all frames came through.
    """
    listing = parts[0].parent / "parts.txt"
    part = path.with_name(f"{path.name}.part")
    try:
        # Names without quotes or spaces, beside the list.
        listing.write_text("".join(f"file {each.name}\n" for each in parts), encoding="utf-8")
        arguments = ["-f", "concat", "-i", listing.name, "-c", "copy", "-movflags", "+faststart"]
        # In its folder: a list's own name is read as an address, in which # and ? have a meaning.
        _run([*arguments, "-f", "mp4", str(part.absolute())], path, None, folder=listing.parent)
        found = count_frames(part)
        if found != num_frames:
            raise QvgError(f"{path} would have {found} of {num_frames} frames: ffmpeg did not join its parts")
        descriptor = os.open(part, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        os.replace(part, path)
    except OSError as error:
        raise disk_error(path, f"cannot write {path}: {error.strerror or error}") from error
    finally:
        listing.unlink(missing_ok=True)
        part.unlink(missing_ok=True)


def _run(arguments: list[str], path: Path, data: memoryview | None, folder: Path | None = None) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *arguments]
    # In a session of its own: Ctrl-C is for us, and the part in hand is finished first.
    result = subprocess.run(command, input=data, capture_output=True, start_new_session=True, cwd=folder)
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise disk_error(path, ": ".join([f"cannot write {path}: ffmpeg failed", *said]))
