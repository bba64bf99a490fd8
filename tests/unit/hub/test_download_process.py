"""`qvg download` as a program of its own: its environment, a kill in the middle, two at once."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from published import saved

from qvg_cli.hub.store import locked

MODEL = "gdhe17/Self-Forcing"
CHECKPOINT = "checkpoints/self_forcing_dmd.pt"
# huggingface_hub writes what it gets in pieces of 10 MiB.
PIECE = 10 * 2**20


@pytest.fixture
def start(server, tmp_path):
    """Starts the program with an environment of its own."""
    running = []

    def run(*arguments, **variables):
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            **variables,
        }
        environment.pop("QVG_HOME", None)
        program = subprocess.Popen(
            [sys.executable, "-m", "qvg_cli", "download", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(program)
        return program

    yield run
    for program in running:
        program.kill()
        program.communicate()


@pytest.fixture
def hub_of_large_files(server, base_files, generator):
    """A checkpoint of several pieces: tensors that are not needed fill it up."""
    noise = torch.randint(0, 256, (4 * PIECE,), dtype=torch.uint8)
    content = saved({"generator_ema": generator, "critic": {"x": noise}})
    server.repository(MODEL, {CHECKPOINT: content})
    server.repository("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", base_files)
    return server


def test_the_environment_is_honoured(server, start, base_files):
    server.repository(MODEL, {CHECKPOINT: b"x"}, token="hf_good")
    server.repository("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", base_files, token="hf_good")
    program = start("self-forcing", "--dry-run", HF_TOKEN="hf_good")
    stdout, stderr = program.communicate(timeout=60)
    assert program.returncode == 0, stderr
    assert CHECKPOINT in stdout
    assert "hf_good" not in stdout + stderr
    sent = {request.authorization for request in server.requests if request.path.startswith("/api/models/")}
    assert sent == {"Bearer hf_good"}


def test_offline_mode_is_honoured(server, start, tmp_path):
    program = start("self-forcing", HF_HUB_OFFLINE="1")
    _, stderr = program.communicate(timeout=60)
    assert program.returncode == 3
    assert "offline mode forbids downloading it" in stderr
    assert not server.requests


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_continues(hub_of_large_files, start, tmp_path, stop):
    hub = hub_of_large_files
    hub.fault("STORE", CHECKPOINT, keep=PIECE * 5 // 2, stalls=True)
    program = start("self-forcing")
    assert hub.is_stalling.wait(60)
    partials = tmp_path / "hf" / "hub"
    for _ in range(600):
        if any(path.stat().st_size >= 2 * PIECE for path in partials.rglob("*.qvg-incomplete")):
            break
        threading.Event().wait(0.1)
    program.send_signal(stop)
    _, stderr = program.communicate(timeout=60)
    if stop == signal.SIGINT:
        assert program.returncode == 130
        assert "error: stopped; the same command continues where it stopped" in stderr
    assert not (tmp_path / "cache" / "qvg" / "self-forcing").exists()

    hub.is_open.set()
    hub.requests.clear()
    program = start("self-forcing")
    stdout, stderr = program.communicate(timeout=120)
    assert program.returncode == 0, stderr
    assert stdout == f"{tmp_path}/cache/qvg/self-forcing\n"
    assert [request.range for request in hub.asked("STORE", "")] == [f"bytes={2 * PIECE}-"]
    assert not list(partials.rglob("*.qvg-incomplete"))


def test_a_second_download_waits_for_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("QVG_HOME", str(tmp_path))
    notes = []
    is_waiting, order = threading.Event(), []

    def second():
        with locked("name", lambda text: (notes.append(text), is_waiting.set())):
            order.append("second")

    with locked("name", notes.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert is_waiting.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert notes == ["another qvg process is downloading name; waiting for it"]
