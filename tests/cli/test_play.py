"""`qvg play` as a program: where it listens, how it ends, what it refuses."""

import json
import re
import signal

import pytest

from qvg_cli.commands import play
from qvg_cli.play.server import listen

TINY = ["--size", "32x64", "--set", "sampler.steps=[1000]", "--no-browser"]


@pytest.fixture
def program(start):
    """A function: options to a program that plays, and the address of its page."""

    def play(*options):
        process = start("play", "--port", 0, *TINY, *options)
        for line in process.stderr:
            if found := re.search(r"play at (http://\S+)", line):
                return process, found[1]
        raise AssertionError(process.wait())

    return play


@pytest.mark.enable_socket
def test_ctrl_c_saves_the_walk(program, tmp_path):
    from websockets.sync.client import connect

    process, address = program("--out", tmp_path, "--record", "lawn")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    with connect(address.replace("http", "ws") + "socket") as socket:
        socket.send(json.dumps({"type": "hold", "keys": ["w"]}))
        while True:
            received = socket.recv(timeout=60)
            if isinstance(received, str) and json.loads(received).get("frames", 0) >= 13:
                break
        # In the middle of the next chunk, or of the one after it.
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    video = tmp_path / "hyworldplay" / "lawn" / "video.mp4"
    assert (process.returncode, stdout) == (0, f"{video}\n"), stderr
    assert video.is_file()
    assert "Traceback" not in stderr
    assert not (video.parent / "parts").exists()


@pytest.mark.enable_socket
def test_nothing_walked_leaves_nothing(program, tmp_path):
    process, _ = program("--out", tmp_path)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (0, ""), stderr
    assert not list((tmp_path / "hyworldplay").iterdir())


@pytest.mark.enable_socket
def test_another_address_gets_a_token(program, tmp_path):
    _, address = program("--host", "0.0.0.0", "--out", tmp_path)
    assert re.search(r"/\?key=[\w-]{20,}$", address)


@pytest.mark.enable_socket
def test_a_port_in_use_is_told_before_anything_is_loaded(qvg):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = qvg("play", "--port", port)
    assert result.exit_code == 2
    assert f"error: port {port} is in use" in result.stderr
    assert "loading" not in result.stderr


def test_the_extra_that_is_missing_is_named(qvg, monkeypatch):
    monkeypatch.setattr(play, "find_spec", lambda name: None if name == "uvicorn" else True)
    result = qvg("play")
    assert result.exit_code == 3
    assert result.stderr == ('error: qvg play needs uvicorn\n\nhint: install with: pip install "qvg[play]"\n')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "nowhere"], "nowhere is not the folder of a run"),
        (["--resume", "nowhere", "--image", "a.png"], "were both given"),
        (["--backend", "hyworldplay", "--pocket", "--sink", "3"], "--sink is not an option of"),
        (["--backend", "self-forcing", "--pocket", "--image", "a.png"], "a.png"),
        (["--image", "missing.png"], "missing.png"),
    ],
)
@pytest.mark.enable_socket
def test_what_cannot_be_played_is_told(qvg, arguments, message):
    result = qvg("play", "--port", 0, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
