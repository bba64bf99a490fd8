"""Runs started at once, and a machine on which nothing but the results can be written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from qvg_cli.files import RunDir
from qvg_cli.report.run_files import read_result

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def start(tiny, out, **environment):
    command = [sys.executable, "-m", "qvg_cli", "generate", "a red ball", *tiny.arguments, "--frames", "33"]
    return subprocess.Popen(
        [*command, "--out", str(out), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_runs_started_at_once_have_a_folder_each(tiny, tmp_path):
    programs = [start(tiny, tmp_path) for _ in range(3)]
    ends = [program.communicate() for program in programs]
    assert [program.returncode for program in programs] == [0, 0, 0], ends
    folders = sorted(Path(json.loads(stdout)["folder"]) for stdout, _ in ends)
    assert [folder.name for folder in folders] == [f"a-red-ball-seed0{end}" for end in ("", "-2", "-3")]
    latents = [load_file(RunDir(folder).latents)["latents"] for folder in folders]
    assert latents[0].equal(latents[1])
    assert latents[0].equal(latents[2])
    assert {read_result(folder).figures["status"] for folder in folders} == {"complete"}


READ_ONLY = """
set -e
for place in {root} {home} {weights}; do mount --bind $place $place; mount -o remount,bind,ro $place; done
! touch {root}/x {home}/x {weights}/x 2> /dev/null
cd {out}
exec {python} -m qvg_cli "$@"
"""


def test_install_weights_and_home_may_be_read_only(tiny, tmp_path):
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    out.mkdir()
    script = READ_ONLY.format(
        root=ROOT, home=home, weights=tiny.weights, out=out, python=sys.executable
    )  # fmt: skip
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*command, "true"]).returncode:
        pytest.skip("this machine lets nobody mount anything")
    variables = ("HF_HOME", "QVG_HOME", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in variables}
    arguments = ["generate", "a red ball", *tiny.arguments, "--frames", "9", "--verbose"]
    result = subprocess.run(
        [*command, "sh", "-c", script, "sh", *arguments],
        env={**environment, "HOME": str(home), "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (out / result.stdout.strip()).stat().st_size > 0
    assert not list(home.iterdir())
