"""A server of the real classes on a free port of this machine, and a browser made of a socket."""

import json
import struct
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from qvg_cli.engine.engine import Engine

TINY = {"video.height": 32, "video.width": 64, "sampler.steps": [1000]}


@pytest.fixture(scope="session")
def walk_engine(walk_settings):
    return Engine.load("hyworldplay", device="cpu", settings={**walk_settings, "sampler.steps": [1000]})


@pytest.fixture(scope="session")
def pocket_engine():
    """The built-in walk: it keeps colours, packs to less than BF16, and knows its words."""
    return Engine.load("hyworldplay", pocket=True, device="cpu", settings=TINY)


@pytest.fixture(scope="session")
def text_engine():
    return Engine.load("self-forcing", pocket=True, device="cpu", settings=TINY)


class Browser:
    """What a page does, by hand: it shows every frame as soon as it comes, unless it is told not to."""

    def __init__(self, port, ticket="", shows=True, query="", **headers):
        from websockets.sync.client import connect

        address = f"ws://127.0.0.1:{port}/socket?ticket={ticket}{query}"
        self._open = ExitStack()
        self.socket = self._open.enter_context(
            connect(address, additional_headers=headers, open_timeout=10, close_timeout=1)
        )
        self.shows = shows
        self.frames = []
        self.messages = []

    def send(self, **message):
        self.socket.send(json.dumps(message))

    def read(self, timeout=0.2):
        """Take what comes; whether something did."""
        try:
            received = self.socket.recv(timeout=timeout)
        except TimeoutError:
            return False
        if isinstance(received, bytes):
            (number,) = struct.unpack(">I", received[:4])
            self.frames.append((number, received[4:]))
            if self.shows:
                self.send(type="shown", frame=number)
        else:
            self.messages.append(json.loads(received))
        return True

    def wait(self, is_there, seconds=180):
        """Read until something is there."""
        end = time.monotonic() + seconds
        while not is_there():
            assert time.monotonic() < end, (self.messages[-6:], len(self.frames))
            self.read()

    def last(self, kind):
        return next((each for each in reversed(self.messages) if each["type"] == kind), None)

    def rest(self, seconds):
        """Read for some time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.read()

    def close(self):
        self._open.close()

    def is_ready(self):
        state = self.last("state")
        return state is not None and state["status"] == "ready"

    def wait_made(self, num_frames):
        """Until the walk is so long and nothing is made any more."""
        self.wait(lambda: self.is_ready() and self.last("state")["frames"] >= num_frames)

    def tap(self, *keys):
        self.send(type="hold", keys=keys)
        self.send(type="hold", keys=[])


@pytest.fixture
def play(tmp_path):
    """A function: an engine to a running server, which is ended with the test."""
    from qvg_cli.play.server import PlayServer, listen, web_server

    running = []

    def start(engine, *, record=None, token=None, first=None):
        out = tmp_path / engine.config.backend
        out.mkdir(exist_ok=True)
        notes = []
        server = PlayServer(engine, out, record=record, note=notes.append)
        listening = listen("127.0.0.1", 0)
        web = web_server(server.app(first or server.player.begin, token))
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listening]})
        thread.start()
        port = listening.getsockname()[1]

        def stop():
            web.should_exit = True
            thread.join()
            server.close()
            listening.close()

        running.append(stop)

        def fetch(path, data=None, **headers):
            request = Request(f"http://127.0.0.1:{port}{path}", data=data, headers=headers)
            try:
                with urlopen(request, timeout=20) as answer:
                    return answer.status, answer.read(), answer.headers
            except HTTPError as error:
                return error.code, error.read(), error.headers

        def browser(**options):
            opened = Browser(port, **options)
            running.append(opened.close)
            return opened

        def end():
            running.remove(stop)
            stop()

        return SimpleNamespace(
            server=server, port=port, out=out, notes=notes, fetch=fetch, browser=browser, end=end
        )

    yield start
    for stop in reversed(running):
        stop()
