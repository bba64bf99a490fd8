"""The program for people with published weights: it refuses in plain words, and writes what it has seen."""

import json

import pytest
import torch

from scripts import verify_real


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QVG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_missing_weights_are_refused(home, tmp_path, capsys):
    out = tmp_path / "verify"
    assert verify_real.main(["--out", str(out)]) == 3
    told = capsys.readouterr().err
    assert told.startswith("error: no weights of ")
    assert f" in {home}" in told
    assert "qvg download longcat" in told
    (home / "self-forcing").mkdir(parents=True)
    assert verify_real.main(["--backend", "longcat", "--out", str(out)]) == 3
    assert "no weights of longcat in" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_refused(home, tmp_path, capsys):
    (home / "self-forcing").mkdir(parents=True)
    assert verify_real.main(["--out", str(tmp_path / "verify")]) == 2
    assert "no GPU that torch can use" in capsys.readouterr().err


def test_what_does_not_fit_is_left_out():
    plan = verify_real.ask(
        [
            "plan",
            "--backend",
            "self-forcing",
            "--seconds",
            "45",
            "--card",
            "24GiB",
            "--json",
            "--cache",
            "bf16",
            "--cache",
            "int2",
        ]
    )
    presets, left_out = verify_real.fitting(plan)
    assert presets == ["int2"]
    assert left_out["bf16"].startswith("needs about ")


def test_a_run_that_fails_is_in_the_report(tmp_path):
    options = verify_real.parse_options(["--pocket", "--set", "sampler.nothing=1", "--out", str(tmp_path)])
    run = verify_real.make_run("pocket", "short", options)
    assert run["status"] == "failed"
    verify_real.save({"created": "now", "command": "x", "machine": {}, "runs": [run]}, tmp_path)
    assert "sampler.nothing" in json.loads((tmp_path / "verify.json").read_text())["runs"][0]["error"]
    assert "sampler.nothing" in (tmp_path / "verify.md").read_text()


@pytest.mark.slow
def test_the_pocket_model_is_verified(tmp_path):
    out = tmp_path / "verify"
    assert verify_real.main(["--pocket", "--frames", "21", "--only", "short", "--out", str(out)]) == 0
    (run,) = json.loads((out / "verify.json").read_text())["runs"]
    assert [arm["name"] for arm in run["figures"]["arms"]] == ["bf16", "int2"]
    for arm, planned in zip(run["figures"]["arms"], run["plan"]["caches"], strict=True):
        assert arm["peak"]["bytes"] == planned["cache_peak"]["bytes"]
    assert "| int2 | 0.30 | 0.30 | 6.50x |" in (out / "verify.md").read_text()


@pytest.mark.slow
def test_every_codec_is_measured_on_what_a_run_has_recorded(tmp_path):
    out = tmp_path / "verify"
    arguments = ["--pocket", "--codecs", "--frames", "21", "--layers", "1", "--presets", "int2", "int2-qvg"]
    assert verify_real.main([*arguments, "--out", str(out)]) == 0
    report = (out / "verify.md").read_text()
    assert "## pocket, codecs: complete" in report
    assert "| int2 | int2-qvg | recorded | 336 |" in report
    assert (out / "codecs" / "pocket.json").is_file()
