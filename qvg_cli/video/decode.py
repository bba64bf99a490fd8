"""Frames of any video file as its decoder gives them, each with the time at which it is shown. No torch.

What a file is made of is asked of PyAV, which parses it. A file that is cut off gives what can be decoded.
Fields of interlaced frames are turned into whole frames; everything else about a frame is left to `render`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
from av.codec import Codec, CodecContext
from av.error import FFmpegError, InvalidDataError
from av.filter import Graph
from av.format import Flags
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from qvg_cli.errors import UsageError

_LOCAL_ONLY = {"protocol_whitelist": "file"}
"""A playlist must not make libav open a network connection."""
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""The usual decoders of these leave the alpha out."""
_DEFAULT_BONUS = 5_000_000
"""Pixels: how much being the default counts for ffmpeg when it chooses among streams by their size."""
_LONGEST_GAP = 10
"""Seconds: a longer one in a broadcast stream, or backwards, is a clock that was set anew."""
_LEAST_STRETCH = 0.01
_LEAST_SIDE = 4
"""Pixels: less has no fields."""
_USUAL_RATE = Fraction(25)
_HIGHEST_SHARE = Fraction(3, 2)


class Source(AbstractContextManager["Source"]):
    """An open video file, read once from its begin; `UsageError` if it cannot be read, or holds no video.

    Attributes:
        fps: Frames per second, on average.
        pixel_aspect: Width of a pixel over its height.
        is_damaged: Something could not be decoded so far.
        is_interlaced: Fields were made one moment so far.
    """

    def __init__(self, path: Path) -> None:
        _check_file(path)
        self.path = path
        self._open(threads="AUTO")
        aspect = self.stream.sample_aspect_ratio or Fraction(1)
        # An encoder that makes odd sizes even tells it here.
        self.pixel_aspect = Fraction(1) if abs(aspect - 1) < _LEAST_STRETCH else aspect
        self.has_sound = bool(self._container.streams.audio)
        self.fps = _rate(self.stream, has_times=not self._has_flag(Flags.no_timestamps))
        self.is_damaged = self.is_interlaced = False

    def _open(self, *, threads: str) -> None:
        try:
            self._container = av.open(_named(self.path), "r", options=_LOCAL_ONLY)
        except (FFmpegError, ValueError) as error:
            raise _unreadable(self.path) from error
        videos = self._container.streams.video
        if not (streams := [each for each in videos if not each.disposition & Disposition.attached_pic]):
            self._container.close()
            what = "only audio and a cover picture" if videos else "no pictures, only audio or text"
            raise UsageError(
                f"{self.path} is not a video that can be read: it holds {what}", hint="use a video file"
            )
        self.stream = max(streams, key=_rank)
        self.stream.thread_type = threads

    def __exit__(self, *error: object) -> None:
        self._container.close()

    @property
    def codec(self) -> str:
        return self.stream.codec_context.codec.canonical_name

    @property
    def told_seconds(self) -> float | None:
        """How long the video is by what the file says of itself; `None` where it says nothing."""
        has_length = self.stream.duration is not None and not self._has_flag(Flags.ts_discont)
        if has_length and self.stream.duration and self.stream.time_base:
            return float(self.stream.duration * self.stream.time_base)
        # The sound may be longer, and a broadcast's clock may have been set anew.
        if self.has_sound or self._has_flag(Flags.ts_discont) or self._container.duration is None:
            return None
        return self._container.duration / av.time_base

    def frames(self, *, start_seconds: float = 0.0) -> Iterator[VideoFrame]:
        """Every frame from the one that is shown at `start_seconds` on."""
        for frame in self._deinterlaced(start_seconds):
            if frame.time is None or frame.time + float(1 / self.fps) > start_seconds:
                yield frame

    def timed_frames(self) -> Iterator[tuple[Fraction, Fraction, VideoFrame]]:
        """Every frame with the second at which it is first shown, and for how long; seconds never fall."""
        is_broadcast = self._has_flag(Flags.ts_discont)
        origin: Fraction | None = None
        begin, unit = self._container.start_time, self.stream.time_base
        if begin is not None and unit is not None and not (is_broadcast or self._has_no_pts):
            # Where the file begins, sound included, on the video's own clock.
            origin = round(Fraction(begin, av.time_base) / unit) * unit
        start, end = Fraction(0), None
        for frame in self._deinterlaced():
            length = 1 / self.fps
            if frame.duration and frame.time_base:
                length = frame.duration * frame.time_base
            if frame.pts is None or not frame.time_base:
                start = end or start
            else:
                second = frame.pts * frame.time_base
                if origin is None:
                    origin = second
                second -= origin
                if end is not None:
                    is_later = is_broadcast and second - end > _LONGEST_GAP
                    if start - second > _LONGEST_GAP or is_later:
                        origin += second - end
                        second = end
                    second = max(second, start)
                start = second
            end = start + length
            yield start, length, frame

    def count_packets(self) -> int:
        """Packets of the video, nothing decoded: one a frame."""
        try:
            return sum(1 for packet in self._container.demux(self.stream) if packet.size)
        except FFmpegError:
            return 0

    @property
    def _has_no_pts(self) -> bool:
        """AVI keeps frames in the order of decoding without the times at which they are shown."""
        return self._container.format.name == "avi"

    def _has_flag(self, flag: Flags) -> bool:
        return bool(self._container.format.flags & cast(int, flag.value))

    def _decoded(self, start_seconds: float) -> Iterator[VideoFrame]:
        num_given = 0
        try:
            for frame in self._decode(start_seconds):
                num_given += 1
                yield frame
            return
        except FFmpegError:
            self.is_damaged = True
        # Where several threads decode ahead, whole frames are lost together with a damaged one.
        self._container.close()
        self._open(threads="NONE")
        yield from itertools.islice(self._decode(start_seconds, skips_damage=True), num_given, None)

    def _decode(self, start_seconds: float, *, skips_damage: bool = False) -> Iterator[VideoFrame]:
        if start_seconds:
            self._container.seek(int(start_seconds * av.time_base))
        decoder = _decoder(self.stream)
        packets = self._container.demux(self.stream)
        is_at_end = False
        while not is_at_end:
            frames: list[VideoFrame] = []
            packet = None
            try:
                packet = next(packets, None)
                if packet is not None and packet.is_corrupt and not skips_damage:
                    raise InvalidDataError(0, "a packet is cut off")
                frames = decoder.decode(packet)
            except EOFError:
                pass
            except FFmpegError:
                if not skips_damage:
                    raise
            is_at_end = packet is None
            for frame in frames:
                if self._has_no_pts:
                    frame.pts = frame.dts
                self.is_damaged |= bool(frame.is_corrupt)
                yield frame

    def _deinterlaced(self, start_seconds: float = 0.0) -> Iterator[VideoFrame]:
        """Frames in their order; from the first interlaced one on, two fields are made one moment."""
        graph: Graph | None = None
        shape: tuple[object, ...] = ()
        for frame in self._decoded(start_seconds):
            found = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
            if graph is not None and found != shape:
                yield from push(graph, None)
                graph = None
            if graph is None and frame.interlaced_frame and min(frame.width, frame.height) >= _LEAST_SIDE:
                graph, shape = filter_graph(frame, [("bwdif", "mode=send_frame:deint=interlaced")]), found
                self.is_interlaced = True
            if graph is None:
                yield frame
            else:
                yield from push(graph, frame)
        if graph is not None:
            yield from push(graph, None)


def filter_graph(frame: VideoFrame, filters: Sequence[tuple[str, str]]) -> Graph:
    """A chain of libav's filters, each a name and its arguments, for frames like `frame`."""
    graph = Graph()
    about = {
        "video_size": f"{frame.width}x{frame.height}",
        "pix_fmt": frame.format.name,
        "time_base": frame.time_base or Fraction(1, av.time_base),
        "colorspace": int(frame.colorspace),
        "range": int(frame.color_range),
    }
    nodes = [graph.add("buffer", ":".join(f"{name}={value}" for name, value in about.items()))]
    nodes += [graph.add(name, arguments) for name, arguments in (*filters, ("buffersink", ""))]
    graph.link_nodes(*nodes).configure()
    return graph


def push(graph: Graph, frame: VideoFrame | None) -> Iterator[VideoFrame]:
    """What a chain gives after one frame more; after `None`, its rest."""
    graph.vpush(frame)
    while True:
        try:
            yield graph.vpull()
        except (BlockingIOError, EOFError):
            return


def _named(path: Path) -> str | BinaryIO:
    """What PyAV takes for the file `path` and for nothing else, such as the protocol of `concat:a`."""
    name = f"file:{path.absolute()}"
    try:
        name.encode()
    except UnicodeEncodeError:
        return path.open("rb")
    return name


def _check_file(path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(
                f"{path} is not a file, and a clip is read more than once", hint="save it to a file first"
            )
        with path.open("rb") as file:
            if not file.read(1):
                raise UsageError(f"{path} is empty: it has 0 bytes", hint="copy or download it again")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _unreadable(path: Path) -> UsageError:
    with path.open("rb") as file:
        begin = file.read(16)
    if begin[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return UsageError(
            f"{path} lacks the index of an MP4 or MOV file, which usually is at its end: it is truncated",
            hint="copy or download it again, or stop the recording before you copy it",
        )
    return UsageError(
        f"{path} is not a video that can be read",
        hint="supported: MP4, WebM, MOV and others that ffmpeg decodes",
    )


def _rank(stream: VideoStream) -> int:
    """By what ffmpeg chooses among several streams."""
    is_default = bool(stream.disposition & Disposition.default)
    return stream.codec_context.width * stream.codec_context.height + _DEFAULT_BONUS * is_default


def _rate(stream: VideoStream, *, has_times: bool) -> Fraction:
    average, guessed = stream.average_rate, stream.guessed_rate or stream.base_rate
    if not guessed:
        return average or _USUAL_RATE
    # Where frames carry no times, the average is a demuxer's own guess; nor is it more than the finest rate.
    return average if has_times and average and average < _HIGHEST_SHARE * guessed else guessed


def _decoder(stream: VideoStream) -> VideoCodecContext:
    name = _ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return stream.codec_context
    decoder = CodecContext.create(Codec(name, "r"))
    assert isinstance(decoder, VideoCodecContext)
    return decoder
