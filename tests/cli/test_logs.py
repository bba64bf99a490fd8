"""The log of a run: times and events in its folder, on stderr only if asked for, and no secret anywhere."""

import json
import re
from logging import getLogger
from pathlib import Path

from qvg_cli.logs import run_log
from qvg_cli.models.self_forcing.pipeline import SelfForcingDenoiser

TOKEN = "hf_" + "AbCdEfGh" * 4


def test_every_phase_has_its_time(finished):
    _, made = finished
    log = (Path(made["folder"]) / "run.log").read_text()
    assert re.search(r"INFO .*: model: \d+\.\d{3} s$", log, re.M)
    lines = re.findall(
        r"chunk (\d): denoise [\d.]+ s, decode [\d.]+ s(, commit [\d.]+ s)?; KV cache 0\.0\d MiB", log
    )
    assert [(number, bool(commit)) for number, commit in lines] == [("1", True), ("2", True), ("3", False)]
    assert re.search(r"video and reports: \d+\.\d{3} s$", log, re.M)
    assert "said: chunk 3/3: 33 frames" in log


def test_stderr_has_the_log_only_if_asked_for(finished, tiny, tmp_path, monkeypatch):
    assert " INFO " not in finished[0].stderr
    short = ("a red ball", "--frames", 9, "--out", tmp_path)
    shown = tiny(*short, "--verbose").stderr
    assert " INFO qvg_cli.runs.run: chunk 1: denoise " in shown
    assert shown.count("chunk 1/1: ") == 1
    monkeypatch.setenv("QVG_LOG", "debug")
    assert " DEBUG qvg_cli.logs: chunk written: " in tiny(*short).stderr
    monkeypatch.setenv("QVG_LOG", "loud")
    result = tiny(*short)
    assert (result.exit_code, "QVG_LOG=loud is not a log level" in result.stderr) == (2, True)


def test_no_token_is_written_anywhere(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("sys.argv", ["qvg", "generate", "--prompt", TOKEN])
    denoise = SelfForcingDenoiser.denoise
    chunks = []

    def leak(self, chunk, *arguments):
        chunks.append(chunk)
        if len(chunks) == 2:
            raise RuntimeError(f"https://me:word@hub/x?X-Amz-Signature=abc refused {TOKEN}")
        return denoise(self, chunk, *arguments)

    monkeypatch.setattr(SelfForcingDenoiser, "denoise", leak)
    result = tiny("a red ball", "--frames", 33, "--out", tmp_path, "--json", "--verbose", "--debug")
    assert result.exit_code == 1
    folder = Path(json.loads(result.stdout)["folder"])
    log = (folder / "run.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert "RuntimeError: https://[hidden]@hub/x?X-Amz-Signature=[hidden] refused [hidden]" in log
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert TOKEN.encode() not in content
            assert b"me:word" not in content
    assert TOKEN not in result.output


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path):
    with run_log(tmp_path / "none" / "run.log"):
        getLogger("qvg_cli").warning("x")
    with run_log(Path("/dev/full")):
        getLogger("qvg_cli").warning("x")
