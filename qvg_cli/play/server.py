"""The page, its socket, uploads and downloads; everything that is made is the player's."""

import asyncio
import base64
import errno
import hashlib
import logging
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from qvg_cli.engine.engine import Engine
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.play import messages
from qvg_cli.play.access import Access
from qvg_cli.play.player import Player
from qvg_cli.play.viewers import HELD_SECONDS, Audience, Seats, Viewer
from qvg_cli.play.walk import downloads, find_saved, saved_runs
from qvg_cli.video.picture import open_image

LOG = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 20 << 20
MAX_PICTURE_PIXELS = 50_000_000
_PAGE = Path(__file__).with_name("page.html")
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
_PICTURE_HINT = "supported: PNG, JPEG, WebP"
_ELSEWHERE = 4001
"""The code of a socket that is closed because the same browser has opened another."""


class PlayServer:
    """One player, those who watch, and the walk; the arguments are the player's."""

    def __init__(self, engine: Engine, out: Path, *, record: str | None, note: Callable[[str], None]) -> None:
        self.seats = Seats()
        self.audience = Audience(lambda has_room: self.player.set_room(has_room), self.seats.is_player)
        self.player = Player(
            engine, out, record=record, tell=self.audience.tell, show=self.audience.show, note=note
        )
        self._out = out
        self._pictures = Path(tempfile.mkdtemp(prefix="qvg-play-"))
        self._open: dict[str, tuple[Viewer, WebSocket]] = {}

    def app(self, first: Callable[[], None], token: str | None = None) -> Starlette:
        """What a web server runs; the player begins with `first`."""

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            self.audience.begin(asyncio.get_running_loop())
            self.player.start(first)
            yield
            self.audience.end()

        routes = [
            Route("/", self._show_page),
            Route("/picture", self._take_picture, methods=["POST"]),
            Route("/saved/{name}/{file}", self._give_file),
            WebSocketRoute("/socket", self._speak),
        ]
        return Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(Access, token=token)])

    def close(self) -> None:
        """End, with the walk saved; `QvgError` if it cannot be saved."""
        try:
            self.player.close()
        finally:
            shutil.rmtree(self._pictures, ignore_errors=True)

    async def _show_page(self, request: Request) -> Response:
        page, policy = _page()
        headers = {
            "content-security-policy": policy,
            "referrer-policy": "no-referrer",
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
        }
        return HTMLResponse(page, headers=headers)

    async def _take_picture(self, request: Request) -> Response:
        try:
            path = await self._receive_picture(request)
        except ClientDisconnect:
            return Response(status_code=400)
        except UsageError as error:
            return JSONResponse({"message": str(error), "hint": error.hint}, status_code=400)
        return JSONResponse({"picture": path.name})

    async def _receive_picture(self, request: Request) -> Path:
        content, num_bytes = bytearray(), 0
        async for part in request.stream():
            num_bytes += len(part)
            if num_bytes <= MAX_PICTURE_BYTES:
                content += part
            # Read on for a while without keeping it: who is still sending does not hear an answer.
            elif num_bytes > 10 * MAX_PICTURE_BYTES:
                break
        if num_bytes > MAX_PICTURE_BYTES:
            most = MAX_PICTURE_BYTES >> 20
            raise UsageError(f"the picture is larger than {most} MiB", hint="use a smaller one")
        return await run_in_threadpool(keep_picture, bytes(content), self._pictures)

    async def _give_file(self, request: Request) -> Response:
        name, file = request.path_params["name"], request.path_params["file"]
        try:
            allowed = {path.name: path for path in downloads(find_saved(self._out, name))}
        except UsageError as error:
            return JSONResponse({"message": str(error)}, status_code=404)
        if file not in allowed:
            return JSONResponse({"message": f"{name} has no file {file!r}"}, status_code=404)
        # A page of a report must not act in this one's name.
        headers = {"content-security-policy": "sandbox", "x-content-type-options": "nosniff"}
        return FileResponse(allowed[file], filename=f"{name}-{file}", headers=headers)

    async def _speak(self, socket: WebSocket) -> None:
        await socket.accept()
        ticket = self.seats.enter(socket.query_params.get("ticket", "")[:64])
        viewer = Viewer(ticket)
        if ticket in self._open:
            older, old_socket = self._open[ticket]
            self.audience.leave(older)
            with suppress(RuntimeError, WebSocketDisconnect):
                await old_socket.close(_ELSEWHERE)
        self._open[ticket] = (viewer, socket)
        viewer.tell({"type": "welcome", "ticket": ticket, "player": self.seats.is_player(ticket)})
        viewer.tell(self.player.state())
        viewer.tell(self.player.path())
        viewer.tell({"type": "runs", "names": saved_runs(self._out)})
        self.audience.enter(viewer)
        self._tell_seats()
        sender = asyncio.create_task(_send_all(viewer, socket))
        try:
            await self._listen(viewer, socket)
        finally:
            sender.cancel()
            self.audience.leave(viewer)
            if self._open.get(ticket, (None,))[0] is viewer:
                del self._open[ticket]
                self._leave(ticket)

    async def _listen(self, viewer: Viewer, socket: WebSocket) -> None:
        while True:
            received = await socket.receive()
            if received["type"] != "websocket.receive":
                return
            try:
                message = messages.read_message(received.get("text") or received.get("bytes") or b"")
                self._obey(viewer, message)
            except QvgError as error:
                viewer.tell({"type": "error", "message": str(error), "hint": error.hint})

    def _obey(self, viewer: Viewer, message: messages.Message) -> None:
        if isinstance(message, messages.Shown):
            self.audience.has_shown(viewer, message.frame)
            return
        if isinstance(message, messages.Sit):
            self.seats.sit(viewer.ticket)
            self._tell_seats()
            return
        if not self.seats.is_player(viewer.ticket):
            raise UsageError("someone else is playing; you are watching")
        player = self.player
        match message:
            case messages.Hold():
                player.hold(message.keys)
            case messages.Stop():
                player.stop()
            case messages.Prompt():
                player.set_prompt(message.text)
            case messages.World():
                player.begin(message.prompt, self._find_picture(message.picture), message.seed)
            case messages.TakeUp():
                player.take_up(find_saved(self._out, message.name))
            case messages.Save():
                player.save()

    def _find_picture(self, name: str | None) -> Path | None:
        if name is None:
            return None
        path = self._pictures / Path(name).name
        if not path.is_file():
            raise UsageError(f"there is no picture {name!r}", hint="send it again")
        return path

    def _leave(self, ticket: str) -> None:
        if self.seats.is_player(ticket):
            # Nobody holds a key any more.
            self.player.stop()
            with suppress(RuntimeError):
                asyncio.get_running_loop().call_later(HELD_SECONDS + 1, self._tell_seats)
        self.seats.leave(ticket)
        self._tell_seats()

    def _tell_seats(self) -> None:
        about = {"type": "seat", "is_free": self.seats.is_free, "watching": len(self._open) - 1}
        for viewer, _ in self._open.values():
            viewer.tell({**about, "player": self.seats.is_player(viewer.ticket)})


def keep_picture(content: bytes, folder: Path) -> Path:
    """An uploaded picture as a file in `folder`, read whole; `UsageError` if it is none, or too large."""
    path = folder / hashlib.sha256(content).hexdigest()[:32]
    path.write_bytes(content)
    try:
        return path.rename(path.with_suffix(_check_picture(path)))
    except UsageError as error:
        path.unlink(missing_ok=True)
        # The user knows it by another name.
        message = str(error).replace(str(path), "that picture")
        raise UsageError(message, hint=error.hint or _PICTURE_HINT) from error


def _check_picture(path: Path) -> str:
    """The suffix that a picture's file should have; `UsageError` if it cannot be read, or is too large."""
    try:
        with Image.open(path) as image:
            (width, height), suffix = image.size, _SUFFIXES.get(image.format or "")
    except Image.DecompressionBombError as error:
        raise UsageError("that picture is too large", hint="use a smaller one") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UsageError("that is not a picture that can be read") from error
    if suffix is None:
        raise UsageError("that is not a kind of picture that can be read")
    if width * height > MAX_PICTURE_PIXELS:
        raise UsageError(
            f"the picture has {width} x {height} pixels, at most {MAX_PICTURE_PIXELS:,} are taken",
            hint="use a smaller one",
        )
    open_image(str(path))
    return suffix


async def _send_all(viewer: Viewer, socket: WebSocket) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):
        while True:
            item = await viewer.next()
            if isinstance(item, bytes):
                await socket.send_bytes(item)
            else:
                await socket.send_json(item)


@cache
def _page() -> tuple[str, str]:
    """The page, and a policy by which it runs its own script and no other."""
    page = _PAGE.read_text(encoding="utf-8")
    hashes = {
        tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, text in re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    }
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src 'self' blob: data:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return page, policy


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits at an address; port 0 takes a free one; `UsageError` if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        # From here on a browser is not refused, it waits.
        listening.listen(64)
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} is in use", hint=f"use another one: --port {port + 1}") from error
        raise UsageError(f"cannot listen on {host}, port {port}: {error}") from error
    return listening


def web_server(app: Starlette) -> uvicorn.Server:
    """What runs an app until its `should_exit`, or Ctrl-C."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws_max_size=messages.MAX_BYTES,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def serve(app: Starlette, listening: socket.socket) -> None:
    """Run until Ctrl-C or SIGTERM, which raise `KeyboardInterrupt` when all connections are closed."""
    web_server(app).run(sockets=[listening])
