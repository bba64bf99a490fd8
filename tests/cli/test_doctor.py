"""`qvg doctor` and `qvg clean`: what is said of this machine, and what is freed."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from qvg_cli.config.resources import qvg_home
from qvg_cli.files import find_states
from qvg_cli.redaction import redact
from qvg_cli.report import doctor, provenance
from qvg_cli.report.doctor import kernel_error

TOKEN = "hf_" + "AbCdEfGh" * 4


def found_by(result):
    return {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}


def test_the_machine_is_told_without_secrets(qvg, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    result = qvg("doctor", "--json", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    found = found_by(result)
    assert f"torch {torch.__version__}" in found["packages"]["said"]
    assert found["ffmpeg"]["state"] == found["results"]["state"] == "ok"
    assert found["kernels"]["said"].startswith(("Triton kernels disabled: ", "compiled and checked"))
    assert found["hub"]["said"] == "offline mode, token found"
    assert TOKEN not in result.output
    screen = qvg("doctor", "--out", tmp_path).stdout.splitlines()
    assert len(screen) <= 24
    assert max(map(len, screen)) <= 80


def test_a_problem_is_named_with_its_remedy(qvg, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    monkeypatch.setenv("QVG_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = qvg("doctor", "--out", tmp_path)
    assert result.exit_code == 1
    assert "ffmpeg     PROBLEM: no ffmpeg at /nowhere/ffmpeg (install the" in result.stdout
    assert "kernels    PROBLEM: QVG_KERNELS=triton does not work on a CPU (unset it;" in result.stdout
    assert result.stderr.startswith("error: problems found: kernels, ffmpeg")


def test_what_the_reference_reads_is_no_error():
    assert kernel_error(torch.device("cpu")) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a {TOKEN} b", "a [hidden] b"),
        ("--token my-own-secret", "--token [hidden]"),
        ("https://me:word@host/x", "https://[hidden]@host/x"),
        ("https://host/x?X-Amz-Signature=ab12&y=1", "https://host/x?X-Amz-Signature=[hidden]&y=1"),
        ("a red ball", "a red ball"),
    ],
)
def test_secrets_are_hidden(monkeypatch, text, expected):
    monkeypatch.setenv("HF_TOKEN", "my-own-secret")
    assert redact(text) == expected


@pytest.fixture
def unfinished(tmp_path):
    """A results folder with a run that was cut off, and one that was being removed."""
    run = tmp_path / "self-forcing" / "a"
    for state in (run / "state", run.with_name("b") / ".state.removed"):
        state.mkdir(parents=True)
        (state / "identity.json").write_text("{}")
        (state / "00000.mp4").write_bytes(b"x" * 1000)
    (run / "run.yaml").write_text("seed: 1\n")
    return tmp_path


def test_what_is_kept_is_shown_and_freed_by_name(qvg, unfinished):
    weights = qvg_home() / "self-forcing"
    weights.mkdir(parents=True)
    (weights / "x.safetensors").symlink_to("/nowhere/x")
    (qvg_home() / "text").mkdir(exist_ok=True)
    (qvg_home() / "text" / "x.safetensors").write_bytes(b"x" * 2000)
    shown = qvg("clean", "--out", unfinished, "--json")
    kept = json.loads(shown.stdout)["kept"]
    assert [(item["name"], item["bytes"] > 1000) for item in kept] == [
        ("weights:self-forcing", False),
        ("text", True),
        ("unfinished", True),
        ("unfinished", True),
    ]
    result = qvg("clean", "unfinished", "--out", unfinished)
    assert "dry run: nothing deleted (use --yes to delete)" in result.stderr
    assert len(list(find_states(unfinished))) == 2
    result = qvg("clean", "unfinished", "--yes", "--out", unfinished)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "    2.0 KiB  deleted")
    assert not list(find_states(unfinished))
    assert (unfinished / "self-forcing" / "a" / "run.yaml").exists()
    assert weights.exists()
    assert qvg("clean", "weights:self-forcing", "text", "--yes").exit_code == 0
    assert not weights.exists()
    assert not (qvg_home() / "text").exists()


def test_what_others_put_there_is_not_freed(qvg):
    weights = qvg_home() / "self-forcing"
    weights.mkdir(parents=True)
    (weights / "mine.txt").write_text("x")
    result = qvg("clean", "weights:self-forcing", "--yes")
    assert (result.exit_code, "was not created by qvg download" in result.stderr) == (1, True)
    (weights / "mine.txt").unlink()
    weights.rmdir()


def test_a_name_that_is_not_kept_is_refused(qvg, unfinished):
    result = qvg("clean", "unfinishd", "--out", unfinished)
    assert (result.exit_code, "nearest: unfinished" in result.stderr) == (2, True)


def test_the_machine_needs_not_be_linux(monkeypatch):
    """What macOS lacks: affinity, /proc/cpuinfo, and the count of free pages."""

    def without_free_pages(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "sysconf", without_free_pages)
    monkeypatch.setattr(provenance, "Path", lambda place: Path("/nowhere"))
    assert re.fullmatch(r"\S.*, \d+ cores, [\d.]+ of [\d.]+ GiB free", doctor._cpu()[1])
