"""SIGTERM and SIGUSR1, as schedulers send them: whole chunks are kept, exit code 75, and the run goes on."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from qvg_cli.batch import serial
from qvg_cli.interrupts import Stopped


@pytest.fixture
def stopped(start):
    """A function: what a program says that gets a signal at a line of its own."""

    def run(command, number, line_start="chunk 2/"):
        program = start(*command)
        for line in program.stderr:
            if line.startswith(line_start):
                break
        program.send_signal(number)
        stdout, stderr = program.communicate()
        assert program.returncode == 75, stderr
        return stdout, stderr

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_generate_says_what_was_kept_and_goes_on(stopped, tiny, qvg, tmp_path, number):
    command = ["generate", *tiny.arguments, "a red ball", "--frames", 117, "--out", tmp_path, "--json"]
    stdout, stderr = stopped(command, number)
    made = json.loads(stdout)
    frames, folder = made["pixel_frames"], made["folder"]
    assert (made["status"], frames % 12) == ("interrupted", 9)
    assert stderr.splitlines()[-3:] == [
        f"error: stopped; the first {frames} frames ({frames / 16:.2f} s) are in {folder}/video.mp4",
        "",
        f"hint: resume with: qvg generate --resume {folder}",
    ]
    result = qvg("generate", "--resume", folder, "--frames", 117)
    assert f"resuming after chunk {(frames + 3) // 12} of 10" in result.stderr
    assert result.exit_code == 0, result.stderr


def test_sigusr1_ends_the_chunk_in_hand(stopped, tiny, tmp_path):
    command = ["generate", *tiny.arguments, "a red ball", "--frames", 117, "--out", tmp_path, "--json"]
    stdout, stderr = stopped(command, signal.SIGUSR1)
    shown = [int(found) for found in re.findall(r"^chunk (\d+)/10", stderr, re.MULTILINE)]
    # The line of a chunk that was finished after the signal is the last one before the summary.
    assert json.loads(stdout)["pixel_frames"] == 12 * (shown[-1] if shown else 2) - 3


def test_extend_too(stopped, tiny, tmp_path):
    first = tiny("a red ball", "--frames", 9, "--out", tmp_path, "--quiet")
    folder = Path(first.stdout.strip()).parent
    _, stderr = stopped(["extend", folder, "--frames", 120, "--out", tmp_path], signal.SIGTERM)
    assert re.search(r"^error: stopped; the first \d+ frames", stderr, re.MULTILINE)


def test_compare_too(stopped, tiny, tmp_path):
    settings = tiny.arguments[:-2]
    _, stderr = stopped(
        ["compare", "bf16", "int2-qvg", *settings, "--frames", 117, "--out", tmp_path], signal.SIGTERM
    )
    assert re.search(r"^hint: resume with: qvg compare --resume ", stderr, re.MULTILINE)


def test_a_signal_while_the_model_is_loaded_leaves_nothing(stopped, tiny, tmp_path):
    out = tmp_path / "out"
    command = ["generate", *tiny.arguments, "a red ball", "--frames", 9, "--out", out]
    stdout, stderr = stopped(command, signal.SIGTERM, "loading")
    assert stdout == ""
    assert re.search(r"^error: stopped( by SIGTERM|; no frames were kept)$", stderr, re.MULTILINE)
    assert not list(out.rglob("*.mp4"))


def test_a_signal_of_which_a_library_made_its_own_error_is_told_as_the_signal(tiny, tmp_path, monkeypatch):
    def convert(*arguments, **options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(serial, "make_video", convert)
    result = tiny("a red ball", "--frames", 9, "--out", tmp_path / "out")
    assert result.exit_code == 75
    assert "error: stopped by SIGTERM\n" in result.stderr


def test_a_video_that_is_whole_by_then_is_complete_and_the_next_is_not_begun(tiny, tmp_path, monkeypatch):
    prompts = tmp_path / "p.txt"
    prompts.write_text("red\nball\n")
    whole = serial.make_video

    def end_and_signal(recording, *arguments, **options):
        whole(recording, *arguments, **options)
        monkeypatch.setattr(serial, "stop_if_asked", lambda: _stop())

    def _stop():
        raise Stopped("SIGUSR1")

    monkeypatch.setattr(serial, "make_video", end_and_signal)
    result = tiny("--prompts", prompts, "--frames", 9, "--out", tmp_path / "out")
    assert result.exit_code == 75
    [memory] = (tmp_path / "out").rglob("memory.json")
    assert json.loads(memory.read_text())["status"] == "complete"
