"""What a machine refuses, and variables that mean nothing, are told as what they are: no defect of qvg."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qvg_cli.device import resolve_device
from qvg_cli.environment import KERNELS
from qvg_cli.errors import UsageError, shown_error
from qvg_kernels.runtime import dispatch

NOT_UTF8 = os.fsdecode(b"caf\xe9")


def test_the_kernels_that_can_be_asked_for_are_those_of_dispatch():
    assert KERNELS == (dispatch.VARIABLE, dispatch.CHOICES)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("QVG_KERNELS", "bogus", "QVG_KERNELS=bogus is not possible"),
        ("QVG_LOG", "loud", "QVG_LOG=loud is not a log level"),
        ("HF_HUB_ETAG_TIMEOUT", "soon", "HF_HUB_ETAG_TIMEOUT=soon is not a whole number of seconds"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "", "HF_HUB_DOWNLOAD_TIMEOUT= is not a whole number of seconds"),
    ],
)
@pytest.mark.parametrize("command", [["generate", "--dry-run"], ["plan"], ["doctor"], ["show"]])
def test_a_variable_that_means_nothing_is_named(qvg, monkeypatch, name, value, message, command):
    monkeypatch.setenv(name, value)
    result = qvg(*command)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (2, f"error: {message}")


def test_kernels_are_refused_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setenv("QVG_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UsageError, match="QVG_KERNELS=triton does not work on a CPU"):
        resolve_device("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_device("cpu") == torch.device("cpu")


def test_torchrun_without_its_numbers_is_told():
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "x", "RANK": "first"}
    told = _program("plan", env=environment)
    assert told.returncode == 2
    assert told.stderr.startswith("error: RANK=first is not a number, but TORCHELASTIC_RUN_ID says")


@pytest.mark.parametrize("arguments", [["plan"], ["--help"], ["help", "show"], ["--version"]])
def test_a_full_stdout_is_told(arguments):
    with open("/dev/full", "w") as full:
        told = _program(*arguments, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert told.returncode == 1
    assert "to stdout: No space left on device" in told.stderr
    assert "defect" not in told.stderr
    assert "Exception" not in told.stderr


def test_help_whose_reader_has_gone_is_no_failure():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as closed:
        told = _program("--help", stdout=closed)
    assert (told.returncode, told.stderr) == (0, "")


def test_ctrl_c_while_the_program_is_imported_shows_no_traceback():
    code = (
        "import os, signal, sys\n"
        "class CtrlC:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'qvg_cli.main': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, CtrlC)\n"
        "from qvg_cli.__main__ import run\n"
        "run()\n"
    )
    told = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (130, "", "")


def test_what_is_printed_at_the_very_end_is_not_lost():
    code = "import atexit; from qvg_cli.main import program; atexit.register(print, 'the end'); program()"
    command = [sys.executable, "-c", code, "--version"]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=buffered)
    assert told.stdout.splitlines()[1:] == ["the end"]


def test_a_full_stderr_ends_no_run():
    with open("/dev/full", "w") as full:
        told = subprocess.run(
            [sys.executable, "-m", "qvg_cli", "plan"],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
        )
    assert told.returncode == 0
    assert told.stdout.startswith("model ")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_end_no_command(closed):
    command = f"exec {sys.executable} -m qvg_cli plan {closed}"
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=False).returncode == 0


LONG = "/".join(["x" * 200] * 25)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a ball", "--frames", 9, "--out", LONG],
        ["generate", "--prompts", f"{LONG}.txt"],
        ["generate", "--config", LONG],
        ["generate", "--resume", LONG],
        ["generate", "--backend", "hyworldplay", "--pocket", "--image", LONG, "--dry-run"],
        ["generate", "--backend", "hyworldplay", "--pocket", "--pose", f"{LONG}.json", "--dry-run"],
        ["generate", "a ball", "--backend", "self-forcing", "--set", f"model.weights={LONG}"],
        ["extend", LONG, "a ball"],
        ["show", LONG],
        ["show", "--gallery", LONG],
        ["show", "--out", LONG],
        ["compare", "int2", LONG],
        ["plan", "--config", "x" * 300],
    ],
)
def test_a_path_that_is_too_long_is_told(qvg, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = qvg(*arguments)
    assert result.exit_code in (2, 3), result.stderr
    assert "defect" not in result.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EACCES, 2), (errno.EROFS, 2), (errno.ENAMETOOLONG, 2), (errno.ENOSPC, 1)]
)
def test_what_the_machine_refuses_has_a_message(number, code):
    shown = shown_error(OSError(number, os.strerror(number), "/a/b"))
    assert (shown.exit_code, str(shown)) == (code, f"cannot use /a/b: {os.strerror(number)}")
    assert shown.hint


def test_a_home_that_is_not_there_is_no_defect(qvg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QVG_HOME", "~no-such-user/qvg")
    result = qvg("generate", "a ball", "--backend", "self-forcing", "--device", "cpu", "--out", tmp_path)
    assert (result.exit_code, result.stderr.count("error: no weights at")) == (3, 1)


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["--backend", "hyworldplay", "--pocket", "--image", f"{NOT_UTF8}.png"], "walk.image"),
        (["--backend", "longcat", "--pocket", "--image", f"{NOT_UTF8}.png"], "source.image"),
        (["--backend", "hyworldplay", "--pocket", "--pose", f"{NOT_UTF8}.json"], "walk.pose"),
        (["--device", NOT_UTF8], "device"),
    ],
)
def test_a_name_that_run_yaml_cannot_hold_is_refused_at_once(qvg, arguments, setting):
    result = qvg("generate", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {setting}='caf\\udce9")
    assert "is the byte 0xE9, which is not UTF-8" in result.stderr


def test_a_clip_whose_name_is_not_utf8_is_refused_at_once(qvg, tmp_path):
    clip = tmp_path / f"{NOT_UTF8}.mp4"
    clip.write_bytes(b"x")
    result = qvg("extend", clip, "a ball")
    assert (result.exit_code, "is the byte 0xE9, which is not UTF-8" in result.stderr) == (2, True)


def test_files_and_folders_that_are_only_read_may_have_any_name(tiny, qvg, tmp_path):
    prompts, out, settings = (tmp_path / f"{NOT_UTF8}{end}" for end in (".txt", "", ".yaml"))
    prompts.write_text("a red ball\n")
    settings.write_text("seed: 3\n")
    result = tiny(
        "--prompts", prompts, "--config", settings, "--shard", "1/1", "--frames", 9, "--out", out, "--quiet"
    )
    assert result.exit_code == 0, result.stderr
    run = Path(os.fsdecode(result.stdout_bytes.strip())).parent
    assert (run / "report.html").is_file()
    assert qvg("show", run).exit_code == 0
    assert qvg("show", "--gallery", out).exit_code == 0
    assert (out / "index.html").is_file()
    result = qvg("extend", run, "--frames", 12)
    assert (result.exit_code, "which is not UTF-8" in result.stderr) == (2, True)


def _program(*arguments, stdout=subprocess.PIPE, env=None):
    command = [sys.executable, "-m", "qvg_cli", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env, check=False)
