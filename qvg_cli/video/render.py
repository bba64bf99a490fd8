"""Decoded frames as RGB pictures: upright, with square pixels, on white, in the tones of SDR. No torch."""

from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from qvg_cli.video.decode import filter_graph, push
from qvg_cli.video.tones import tones_of

if TYPE_CHECKING:
    from av.sidedata.sidedata import SideDataContainer

Frames = NDArray[np.uint8]
Filters = tuple[tuple[str, str], ...]

_TRUE_COLORS = "flags=lanczos+accurate_rnd+full_chroma_int"
"""Without the last two, the conversion to RGB darkens every frame by a level."""


class Renderer:
    """Turns the frames of one file into pictures.

    Args:
        size: Height and width that a picture covers, cut at the centre; `None` for its own.
        pixel_aspect: Width of the file's pixels over their height.
    """

    def __init__(self, size: tuple[int, int] | None = None, *, pixel_aspect: Fraction = Fraction(1)) -> None:
        self._size = size
        self._pixel_aspect = pixel_aspect
        self._scale = _Chain()
        self._layers = _Chain()
        self.has_alpha = False

    def render(self, frame: VideoFrame) -> Frames:
        """One frame as `[height, width, 3]` uint8 RGB."""
        tones = tones_of(frame.color_trc, frame.color_primaries)
        height, width = shown_size(frame, self._pixel_aspect)
        if self._size is not None:
            # The least size of the same shape that covers the one asked for.
            tall = _round(Fraction(self._size[1] * height, width))
            wide = _round(Fraction(self._size[0] * width, height))
            height, width = max(tall, self._size[0]), max(wide, self._size[1])
        depth = "rgb24" if tones is None else "rgb48le"
        filters = (*_turn(frame), ("scale", f"{width}:{height}:{_TRUE_COLORS}"), ("format", depth))
        picture = self._scale.run(self._on_white(frame, is_deep=tones is not None), filters)
        if self._size is not None:
            height, width = self._size
            # Half a pixel goes to the even side, as in ffmpeg's crop.
            top, left = round((picture.shape[0] - height) / 2), round((picture.shape[1] - width) / 2)
            picture = picture[top : top + height, left : left + width]
        return np.ascontiguousarray(picture, np.uint8) if tones is None else tones.to_sdr(picture)

    def look(self, frame: VideoFrame) -> None:
        if not self.has_alpha:
            self._on_white(frame, is_deep=False)

    def _on_white(self, frame: VideoFrame, *, is_deep: bool) -> VideoFrame:
        """The frame itself where it is opaque."""
        may_be_clear = any(component.is_alpha for component in frame.format.components)
        if not may_be_clear and not frame.format.has_palette:
            return frame
        white = 65535 if is_deep else 255
        depth = "rgba64le" if is_deep else "rgba"
        layers = self._layers.run(frame, (("scale", _TRUE_COLORS), ("format", depth)))
        alpha = layers[..., 3:].astype(np.uint64)
        if alpha.min() == white:
            return frame
        self.has_alpha = True
        # Before anything is scaled: what lies under the alpha must not come in at its edges.
        mixed = (layers[..., :3] * alpha + white * (white - alpha) + white // 2) // white
        kind: Any = np.uint16 if is_deep else np.uint8
        opaque = VideoFrame.from_ndarray(mixed.astype(kind), format="rgb48le" if is_deep else "rgb24")
        opaque.pts, opaque.time_base = frame.pts, frame.time_base
        return opaque


def shown_size(frame: VideoFrame, pixel_aspect: Fraction) -> tuple[int, int]:
    """Height and width of a frame that is upright and has square pixels; no side is made shorter."""
    width = _round(frame.width * max(pixel_aspect, Fraction(1)))
    height = _round(frame.height / min(pixel_aspect, Fraction(1)))
    is_sideways = any(name == "transpose" for name, _ in _turn(frame))
    return (width, height) if is_sideways else (height, width)


class _Chain:
    """A filter graph that is made anew where frames change."""

    def __init__(self) -> None:
        self._key: object = None
        self._graph = Graph()

    def run(self, frame: VideoFrame, filters: Filters) -> NDArray[Any]:
        """One frame through `filters`, which keep no frames back."""
        shape = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self._key != (shape, filters):
            self._graph, self._key = filter_graph(frame, filters), (shape, filters)
        (result,) = push(self._graph, frame)
        return result.to_ndarray()


def _turn(frame: VideoFrame) -> Filters:
    """What brings a frame upright, by its display matrix.

    Source: libavutil's display.h: column vectors, `x' = a x + c y`, `y' = b x + d y`, with `y` down.
    """
    side_data = cast("SideDataContainer", frame.side_data)
    if Type.DISPLAYMATRIX not in side_data:
        return ()
    data = bytes(side_data[Type.DISPLAYMATRIX])
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].astype(np.int64).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        ways = {(True, True): "cclock_flip", (True, False): "clock", (False, True): "cclock"}
        return (("transpose", ways.get((b > 0, c > 0), "clock_flip")),)
    return (*((("hflip", ""),) if a < 0 else ()), *((("vflip", ""),) if d < 0 else ()))


def _round(value: Fraction) -> int:
    return max(1, int(value + Fraction(1, 2)))
