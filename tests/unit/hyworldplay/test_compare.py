"""`qvg compare` with this family: one model, and latents that decode to the run's own frames."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qvg_cli.main import app


def compare(*arguments):
    result = CliRunner().invoke(app, ["compare", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_arms_share_their_noise_and_finished_runs_give_the_same_figures(walk_config, walk_weights, tmp_path):
    walk_config()
    settings = ("--config", walk_weights / "tiny.yaml", "--frames", 29, "--backend", "hyworldplay")
    made = compare("none", "int2", "none", *settings, "--out", tmp_path)
    first, again = made["videos"][0]["arms"][1:]
    assert first["first_different_frame"] is not None
    assert again["first_different_frame"] is None

    video = Path(made["folder"]) / made["videos"][0]["side_by_side"]
    finished = compare(video.parent / "none", video.parent / "int2", "--out", tmp_path / "again")
    assert finished["videos"][0]["arms"][1]["frames"] == first["frames"]
