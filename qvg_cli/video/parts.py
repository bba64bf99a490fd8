"""A video as parts, each a whole MP4 of some frames, and the file that they make when joined.

Every part begins with a key frame and is coded on its own, so the joined video has the same frames whenever
its parts were made.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np

from qvg_cli.errors import QvgError
from qvg_cli.files import sync
from qvg_cli.video.io import LENGTH, Frames, disk_error

QUALITY = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16")
_TICKS = 1000
"""Units of time of a frame in a file that grows."""


def encode_part(path: Path, frames: Frames, *, fps: int) -> None:
    """Write frames, `[n, height, width, 3]` uint8 RGB, as a file; `QvgError` if ffmpeg failed."""
    _, height, width, _ = frames.shape
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    with _ffmpeg([*source, "-an", *QUALITY, *LENGTH, "-f", "mp4", str(path.absolute())], path, frames=frames):
        pass


def join_parts(parts: Sequence[Path], path: Path, *, num_frames: int) -> None:
    """Write the frames of `parts`, all of one folder, to one file, bit for bit; so many in all."""
    listing = parts[0].parent / "parts.txt"
    part = path.with_name(f"{path.name}.part")
    try:
        # Names without quotes or spaces, beside the list.
        listing.write_text("".join(f"file {each.name}\n" for each in parts), encoding="utf-8")
        arguments = ["-f", "concat", "-i", listing.name, "-c", "copy", "-movflags", "+faststart", *LENGTH]
        # Without the mean rate, which depends on how the parts were joined before.
        arguments += ["-write_btrt", "0"]
        # It says how many frames it has copied; counting them afterwards would decode the whole video.
        arguments += ["-progress", "-", "-f", "mp4", str(part.absolute())]
        # In its folder: a list's own name is read as an address, in which # and ? have a meaning.
        with _ffmpeg(arguments, path, folder=listing.parent) as output:
            said = output.read()
        found = int((re.findall(rb"^frame=(\d+)", said, re.M) or [0])[-1])
        if found != num_frames:
            raise QvgError(f"{path} would have {found} of {num_frames} frames: ffmpeg did not join its parts")
        sync(part)
        os.replace(part, path)
    except OSError as error:
        raise disk_error(path, f"cannot write {path}: {error.strerror or error}") from error
    finally:
        listing.unlink(missing_ok=True)
        part.unlink(missing_ok=True)


def append_parts(parts: Sequence[Path], path: Path, *, num_before: int, fps: int) -> None:
    """Append the frames of `parts`, all of one folder, to a file that plays while it grows.

    It is a fragmented MP4: a head, written with the first parts, and a fragment for each key frame. So many
    frames are in it already.
    """
    listing = parts[0].parent / "preview.txt"
    flags = "+frag_keyframe+empty_moov+default_base_moof+negative_cts_offsets"
    try:
        listing.write_text("".join(f"file {each.name}\n" for each in parts), encoding="utf-8")
        arguments = ["-f", "concat", "-i", listing.name, "-c", "copy", "-movflags", flags]
        arguments += ["-video_track_timescale", str(_TICKS * fps), "-f", "mp4", "-"]
        mode = "ab" if num_before else "wb"
        with _ffmpeg(arguments, path, folder=listing.parent) as output, path.open(mode) as stream:
            while head := output.read(8):
                size, kind = int.from_bytes(head[:4], "big"), head[4:]
                box = head + output.read(size - len(head))
                if kind == b"moof":
                    # Its time counts from the first of these parts. Source: ISO/IEC 14496-12, 8.8.12.
                    begin = box.index(b"tfdt") + 8
                    ticks = int.from_bytes(box[begin : begin + 8], "big") + _TICKS * num_before
                    box = box[:begin] + ticks.to_bytes(8, "big") + box[begin + 8 :]
                if kind in (b"moof", b"mdat") or (not num_before and kind in (b"ftyp", b"moov")):
                    stream.write(box)
    except OSError as error:
        raise disk_error(path, f"cannot write {path}: {error.strerror or error}") from error
    finally:
        listing.unlink(missing_ok=True)


@contextmanager
def _ffmpeg(
    arguments: list[str], path: Path, *, frames: Frames | None = None, folder: Path | None = None
) -> Iterator[IO[bytes]]:
    """Run ffmpeg, and give what it writes as it comes; nothing but the frame or the box in hand is held.

    Args:
        path: That it makes, for messages.
        frames: What it reads, before it writes anything.
        folder: Where it runs.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *arguments]
    source = subprocess.DEVNULL if frames is None else subprocess.PIPE
    with tempfile.TemporaryFile() as said:
        # In a session of its own: Ctrl-C is for us, and the part in hand is finished first.
        with subprocess.Popen(
            command, stdin=source, stdout=subprocess.PIPE, stderr=said, start_new_session=True, cwd=folder
        ) as process:
            assert process.stdout is not None
            if frames is not None and process.stdin is not None:
                # An ffmpeg that fails says why.
                with suppress(BrokenPipeError), process.stdin as stream:
                    for frame in frames:
                        stream.write(np.ascontiguousarray(frame).data)
            yield process.stdout
        if process.returncode:
            said.seek(0)
            why = said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise disk_error(path, ": ".join([f"cannot write {path}: ffmpeg failed", *why]))
