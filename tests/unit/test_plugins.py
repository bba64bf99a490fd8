"""A plugin is a package of its own: installed, its family, codec and YAMLs are those of qvg."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "qvg-example"


def run(site, *arguments, cwd):
    """`qvg` with the packages of `site`."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "qvg_cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The example, installed by pip."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", folder / "site", folder / "source"], check=True)
    return folder / "site"


@pytest.mark.slow
def test_an_installed_plugin_makes_a_video(site, tmp_path):
    arguments = (
        "--backend",
        "short-memory",
        "--pocket",
        "--memory",
        "1",
        "--frames",
        "33",
        "--size",
        "64x32",
    )
    made = run(site, "generate", "a ball", *arguments, "--cache", "absmax", "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    memory = json.loads(Path(tmp_path / json.loads(made.stdout)["memory"]).read_text())
    assert (memory["backend"], memory["cache"], memory["pixel_frames"]) == ("short-memory", "absmax", 33)
    # Eight bits per value, and 32 for each token of 128 values.
    assert memory["peak"]["ratio"] == pytest.approx(16 / 8.25, abs=0.01)
    # Nine latent frames: at most two chunks before the last one are held.
    assert memory["chunks"][-1]["end"]["bf16_bytes"] == memory["chunks"][1]["end"]["bf16_bytes"]


@pytest.mark.slow
def test_help_list_and_errors_know_an_installed_plugin(site, tmp_path):
    shown = run(site, "generate", "--help", cwd=tmp_path).stdout
    assert "--memory SECONDS" in shown[shown.index("Options of short-memory:") :]
    assert "short-memory" in run(site, "download", "--list", cwd=tmp_path).stdout
    refused = run(site, "plan", "--backend", "short-memory", "--memory", "-1", cwd=tmp_path)
    assert (refused.returncode, "--memory -1 is not a length" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_a_broken_plugin_is_named_and_stops_nothing_else(tmp_path):
    info = tmp_path / "site" / "broken-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[qvg.families]\nself-broken = no_such_module:Family\n")
    assert run(tmp_path / "site", "plan", "--seconds", "1", "--json", cwd=tmp_path).returncode == 0
    (tmp_path / "mine.yaml").write_text("family: self-broken\n")
    doctor = run(tmp_path / "site", "doctor", "--json", cwd=tmp_path)
    (found,) = [each for each in json.loads(doctor.stdout)["findings"] if each["name"] == "plugins"]
    assert found["state"] == "problem"
    assert "no_such_module:Family cannot be loaded" in found["said"]
    assert found["remedy"] == "update or remove it: pip uninstall broken"
