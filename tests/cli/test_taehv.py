"""`video.decoder=taehv` from the command line: what a run says of it, and when it is refused."""

import json
from pathlib import Path

import pytest
import yaml

CHOICE = ("--set", "video.decoder=taehv")


def test_a_run_says_which_decoder_it_had(tiny, qvg, random_taehv, tmp_path, monkeypatch):
    monkeypatch.setenv("QVG_HOME", str(random_taehv))
    result = tiny("a red ball", "--frames", 9, *CHOICE, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    folder = Path(json.loads(result.stdout)["folder"])
    assert yaml.safe_load((folder / "run.yaml").read_text())["video"]["decoder"] == "taehv"
    assert json.loads((folder / "memory.json").read_text())["decoder"] == "taehv"
    assert "\ndecoder " in qvg("show", folder).stdout


def test_without_the_download_the_command_for_it_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("QVG_HOME", str(tmp_path))
    result = tiny("a red ball", "--frames", 9, *CHOICE, "--out", tmp_path)
    assert result.exit_code == 3
    assert "hint: download it with: qvg download taehv" in result.stderr


@pytest.mark.parametrize("backend", ["self-forcing", "hyworldplay", "longcat"])
def test_a_demo_model_has_latents_of_its_own(qvg, tmp_path, backend):
    result = qvg(
        "generate",
        "a red ball",
        "--backend",
        backend,
        "--pocket",
        *CHOICE,
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    assert result.exit_code == 2
    assert "error: video.decoder=taehv is for latents of Wan 2.1 and Wan 2.2 5B" in result.stderr


def test_a_plan_names_it(qvg):
    told = qvg("plan", "--backend", "self-forcing", "--gpu", "24GiB", *CHOICE)
    assert "\ndecoder   taehv\n" in told.stdout
