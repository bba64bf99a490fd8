"""The browsers that look on: who of them plays, and frames as JPEG, no faster than each shows them.

Invariant: a browser is sent at most `IN_FLIGHT` frames that it has not shown. One that only watches and falls
behind misses frames; for the one that plays, the next chunk waits.
"""

import asyncio
import io
import secrets
import struct
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from PIL import Image

from qvg_cli.video.io import Frames

IN_FLIGHT = 48
"""Three seconds at 16 frames a second."""
HELD_SECONDS = 60.0
"""How long the seat of a player who is gone stays theirs."""
_MOST_WAITING = 128
_QUALITY = 90
_NUMBER = struct.Struct(">I")


class Seats:
    """The one seat, by the tickets of the browsers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._player: str | None = None
        self._left_at: float | None = None

    @property
    def is_free(self) -> bool:
        if self._player is None:
            return True
        return self._left_at is not None and self._clock() - self._left_at >= HELD_SECONDS

    def enter(self, ticket: str | None) -> str:
        """A browser comes, perhaps with the ticket that it was given before; its ticket now.

        The first to come plays, and so does the player who comes back in time.
        """
        ticket = ticket or secrets.token_urlsafe(16)
        self.sit(ticket)
        return ticket

    def sit(self, ticket: str) -> None:
        """Take the seat if it is free or one's own."""
        if self.is_free or ticket == self._player:
            self._player, self._left_at = ticket, None

    def leave(self, ticket: str) -> None:
        if ticket == self._player and self._left_at is None:
            self._left_at = self._clock()

    def is_player(self, ticket: str) -> bool:
        return ticket == self._player


class Viewer:
    """One browser, known by its ticket when it comes back."""

    def __init__(self, ticket: str) -> None:
        self.ticket = ticket
        self._messages: deque[dict[str, Any]] = deque()
        self._frames: deque[tuple[int, bytes]] = deque()
        self._sent = self._shown = 0
        self._is_ready = asyncio.Event()

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message before the frames that wait."""
        self._messages.append(message)
        self._is_ready.set()

    def add(self, number: int, jpeg: bytes) -> None:
        """Send a frame when there is room for it."""
        self._frames.append((number, jpeg))
        if len(self._frames) > _MOST_WAITING:
            # Every other one: what is left shows the same time, with fewer pictures.
            self._frames = deque(list(self._frames)[1::2])
        self._is_ready.set()

    def forget_frames(self) -> None:
        """Drop what waits: another world begins."""
        self._frames.clear()

    def has_shown(self, number: int) -> None:
        self._shown = max(self._shown, min(number, self._sent))
        self._is_ready.set()

    async def next(self) -> dict[str, Any] | bytes:
        """What to send next, when it may be sent."""
        while True:
            self._is_ready.clear()
            if self._messages:
                return self._messages.popleft()
            if self._frames and self._sent - self._shown < IN_FLIGHT:
                number, jpeg = self._frames.popleft()
                self._sent = number
                return _NUMBER.pack(number) + jpeg
            await self._is_ready.wait()

    def begin_after(self, number: int) -> None:
        """Count from a frame on: those before were not for this browser."""
        self._sent = self._shown = number


class Audience:
    """All browsers that are connected.

    `set_room` takes whether the player's has room for another chunk; `is_player` knows that one's ticket.
    """

    def __init__(self, set_room: Callable[[bool], None], is_player: Callable[[str], bool]) -> None:
        self._viewers: list[Viewer] = []
        self._set_room = set_room
        self._is_player = is_player
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="jpeg")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last: bytes | None = None
        self._made = self._shown = 0
        self._chunk_frames = 1

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def end(self) -> None:
        self._loop = None
        self._encoder.shutdown(cancel_futures=True)

    def enter(self, viewer: Viewer) -> None:
        """A browser comes; it sees the newest frame at once."""
        self._viewers.append(viewer)
        viewer.begin_after(max(0, self._made - 1))
        if self._last is not None:
            viewer.add(self._made, self._last)
        if self._is_player(viewer.ticket):
            self._count_as_shown(self._made)

    def leave(self, viewer: Viewer) -> None:
        if viewer in self._viewers:
            self._viewers.remove(viewer)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to all, from any thread."""
        self._call(lambda: self._tell(message))

    def show(self, frames: Frames) -> None:
        """Send pixels `[n, height, width, 3]` uint8 to all, from any thread."""
        with suppress(RuntimeError):
            for frame in frames:
                # One thread, so in their order.
                self._encoder.submit(self._encode, frame)

    def has_shown(self, viewer: Viewer, number: int) -> None:
        viewer.has_shown(number)
        if self._is_player(viewer.ticket):
            self._count_as_shown(min(number, self._made))

    def _encode(self, frame: Any) -> None:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
        jpeg = buffer.getvalue()
        self._call(lambda: self._add(jpeg))

    def _add(self, jpeg: bytes) -> None:
        self._made += 1
        self._last = jpeg
        for viewer in self._viewers:
            viewer.add(self._made, jpeg)
        self._say_room()

    def _tell(self, message: dict[str, Any]) -> None:
        if message["type"] == "flush":
            message = {**message, "frame": self._made}
            self._count_as_shown(self._made)
            for viewer in self._viewers:
                viewer.forget_frames()
        if message["type"] == "state":
            self._chunk_frames = max(1, message.get("chunk_frames", 1))
        for viewer in self._viewers:
            viewer.tell(message)

    def _count_as_shown(self, number: int) -> None:
        self._shown = max(self._shown, number)
        self._say_room()

    def _say_room(self) -> None:
        # One chunk may be on its way to the screen while the next one is made.
        self._set_room(self._made - self._shown <= self._chunk_frames)

    def _call(self, action: Callable[[], None]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(action)
