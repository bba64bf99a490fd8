"""Any video file as frames of one size and rate: scaled to cover it, cut at the centre. No torch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from av.error import FFmpegError
from av.video.frame import VideoFrame

from qvg_cli.errors import QvgError, UsageError
from qvg_cli.video.decode import Source
from qvg_cli.video.render import Frames, Renderer, shown_size
from qvg_cli.video.tones import tones_of

_LEAST_MISSING_SECONDS = 0.5


@dataclass(frozen=True)
class Clip:
    """A video file that can be read, and the size of its frames upright and with square pixels."""

    path: Path
    height: int
    width: int
    fps: float

    def share_kept(self, height: int, width: int) -> float:
        """How much of a frame is left when it covers `height` x `width`, from 0 to 1."""
        ratio = (self.width / self.height) / (width / height)
        return min(ratio, 1 / ratio)


@dataclass(frozen=True)
class Survey:
    """What a clip holds: frames that `fitted_frames` gives, and notes of what is not kept as it is."""

    num_frames: int
    notes: tuple[str, ...]


def open_clip(path: Path) -> Clip:
    """Look at a video file's first frame; `UsageError` if it cannot be read, or it is not a video."""
    with _reading(path), Source(path) as source:
        frame = next(source.frames(), None)
        if frame is None:
            what = "an animated WebP" if source.codec == "webp" else f"its {source.codec} frames"
            raise UsageError(
                f"{path} is not a video that can be read: {what} cannot be decoded",
                hint="convert it to MP4, WebM, MOV or GIF",
            )
        height, width = shown_size(frame, source.pixel_aspect)
        return Clip(path, height, width, float(source.fps))


def survey_clip(clip: Clip, fps: int) -> Survey:
    """Decode a whole clip, to be sure of what `fitted_frames` gives at this rate; or a `QvgError`."""
    with _reading(clip.path), Source(clip.path) as source:
        renderer = Renderer()
        first: VideoFrame | None = None
        num_frames = 0
        for frame, count in _at_rate(source, fps):
            first = first or frame
            renderer.look(frame)
            num_frames += count
        notes = [] if first is None else list(_notes(source, first, num_frames / fps))
        if renderer.has_alpha:
            notes.append("its transparent parts are shown on white")
        if source.has_sound:
            notes.append("its audio is dropped: videos have no sound")
        return Survey(num_frames, tuple(notes))


def fitted_frames(path: Path, *, height: int, width: int, fps: int) -> Iterator[Frames]:
    """Frames `[height, width, 3]` uint8 RGB of a video file, `fps` a second.

    Frames are left out, or shown twice, where the file has more or fewer of them.
    """
    with _reading(path), Source(path) as source:
        renderer = Renderer((height, width), pixel_aspect=source.pixel_aspect)
        for frame, count in _at_rate(source, fps):
            picture = renderer.render(frame)
            for _ in range(count):
                yield picture


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FFmpegError as error:
        raise QvgError(f"cannot read the video {path}: {error.strerror}") from error


def _at_rate(source: Source, fps: int) -> Iterator[tuple[VideoFrame, int]]:
    """Frames and how often each is shown when there are `fps` a second, the same as ffmpeg's filter `fps`.

    Each begins at the picture that is nearest to its time; of several that begin at one, the last is shown.
    Nothing is shown before the first frame where the sound begins earlier.
    """
    kept: VideoFrame | None = None
    place, end, has_shown = 0, Fraction(0), False
    for start, length, frame in source.timed_frames():
        number = _nearest(start * fps)
        if kept is not None and number > place:
            yield kept, number - place
            has_shown = True
        kept, place, end = frame, number, start + length
    count = max(_nearest(end * fps) - place, 0 if has_shown else 1)
    if kept is not None and count:
        yield kept, count


def _nearest(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def _notes(source: Source, frame: VideoFrame, seconds: float) -> Iterator[str]:
    told = source.told_seconds
    if told is not None and seconds < told - _LEAST_MISSING_SECONDS:
        yield f"truncated: {seconds:.1f} of its {told:.1f} seconds can be decoded"
    elif source.is_damaged:
        yield "damaged: using what can be decoded"
    aspect = source.pixel_aspect
    if aspect != 1:
        height, width = shown_size(frame, aspect)
        yield f"pixels of {aspect.numerator}:{aspect.denominator} made square: {width} x {height}"
    if source.is_interlaced:
        yield "interlaced: deinterlaced"
    tones = tones_of(frame.color_trc, frame.color_primaries)
    if tones is not None:
        yield tones.words
