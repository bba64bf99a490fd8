"""The main job as a newcomer runs it: no option, no GPU, no network, from a folder of their own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qvg_cli.video.io import read_frames


def test_a_short_video_in_two_bits(qvg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = qvg("generate", "--json", "--frames", 33, "--size", "112x64")
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    frames = np.stack(list(read_frames(Path(made["video"]))))
    assert frames.shape == (33, 64, 112, 3)
    assert frames.std() > 10, "the picture is flat"
    assert made["cache"] == "int2"
    assert made["peak"]["ratio"] > 4
    assert "does not know" not in result.stderr
    assert Path(made["folder"]).parts[:2] == ("results", "self-forcing")


@pytest.mark.slow
def test_the_demo(tmp_path):
    program = [sys.executable, "-m", "qvg_cli", "generate", "--json"]
    result = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    frames = np.stack(list(read_frames(tmp_path / made["video"])))
    assert frames.shape == (81, 128, 224, 3)
    assert made["video_seconds"] == 5.0625
    assert made["end"]["ratio"] > 6
    # Something moves in every second.
    seconds = frames.astype(np.int16)[:80].reshape(5, 16, *frames.shape[1:])
    assert (np.abs(np.diff(seconds, axis=1)).mean(axis=(1, 2, 3, 4)) > 0.2).all()
