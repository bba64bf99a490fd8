"""The full-size runs at a tiny size: real plan, session, rollout, decoder; a stop keeps the figures."""

import json
import math

import pytest
import torch

from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.longcat.layers import TransformerConfig
from qvg_cli.models.longcat.model import LongCatTransformer
from scripts import full_size
from scripts.bench import play
from scripts.random_models import FULL, TINY, RandomModels


@pytest.mark.parametrize(
    ("backend", "options", "num_chunks"),
    [
        ("self-forcing", ["--frames", "6"], 2),
        ("hyworldplay", ["--chunks", "2", "--context", "incremental"], 2),
        pytest.param(
            "longcat",
            ["--segments", "1", "--steps", "1", "--set", "sampler.guided_steps=2"],
            2,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_arm_runs_and_is_written(tmp_path, capsys, backend, options, num_chunks):
    out = tmp_path / "run.json"
    arguments = ["--backend", backend, "--size", "tiny", "--cache", "bf16", "int2", "--out", str(out)]
    assert full_size.main([*arguments, "--device", "cpu", *options]) == 0
    record = json.loads(out.read_text())
    bf16, int2 = record["arms"]
    for arm in (bf16, int2):
        assert arm["status"] == "complete"
        assert [chunk["chunk"] for chunk in arm["chunks"]] == list(range(num_chunks))
        last = arm["chunks"][-1]
        assert last["decode_seconds"] > 0
        assert 0 < sum(last["call_seconds"]) <= last["transformer_seconds"] + 0.01
    assert bf16["summary"]["peak"]["ratio"] == 1
    assert int2["summary"]["peak"]["ratio"] > 2
    printed = capsys.readouterr().out
    assert "| int2 |" in printed
    full_size.main(["--table", str(out)])
    assert capsys.readouterr().out == printed
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- full_size -->\nold\n<!-- end full_size -->\nafter\n")
    full_size.main(["--table", str(out), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| int2 |" in text
    assert f"--backend {backend}" in text


def test_the_end_of_a_long_video_is_measured_alone(tmp_path):
    out = tmp_path / "run.json"
    arguments = ["--size", "tiny", "--device", "cpu", "--frames", "12", "--done", "3", "--out", str(out)]
    assert full_size.main(arguments) == 0
    (arm,) = json.loads(out.read_text())["arms"]
    (chunk,) = arm["chunks"]
    assert chunk["latent_frames"] == 12
    # The cache holds what the whole run holds at its end.
    full_size.main([*arguments[:6], "--out", str(out)])
    whole = json.loads(out.read_text())["arms"][0]["chunks"][-1]
    assert (chunk["peak"], chunk["end"]) == (whole["peak"], whole["end"])


def test_who_plays_is_timed_with_random_weights(tmp_path, capsys):
    out = tmp_path / "play.json"
    options = ["--random", "tiny", "--chunks", "2", "--json", str(out)]
    play.main(["--backend", "hyworldplay", *options])
    figures = json.loads(out.read_text())
    assert [chunk["frames"] for chunk in figures["chunks"]] == [13, 16]
    assert all(0 < chunk["first_frame_seconds"] < chunk["seconds"] for chunk in figures["chunks"])
    assert "medians after chunk 1" in capsys.readouterr().out


def test_a_stopped_arm_keeps_its_figures(tmp_path, capsys):
    out = tmp_path / "run.json"
    arguments = ["--size", "tiny", "--device", "cpu", "--frames", "21", "--budget-seconds", "0"]
    assert full_size.main([*arguments, "--out", str(out)]) == 0
    (arm,) = json.loads(out.read_text())["arms"]
    assert arm["status"] == "stopped: out of its budget"
    (chunk,) = arm["chunks"]
    assert chunk["is_partial"]
    assert len(chunk["call_seconds"]) == 1
    assert "out of its budget; 1 calls" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failed_arm_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    random_states = RandomModels.text_states

    def broken_once(self, rows, num_tokens):
        monkeypatch.setattr(RandomModels, "text_states", random_states)
        return random_states(self, rows, num_tokens) * float("nan")

    monkeypatch.setattr(RandomModels, "text_states", broken_once)
    out = tmp_path / "run.json"
    arguments = ["--size", "tiny", "--device", "cpu", "--frames", "6", "--cache", "int2", "bf16"]
    assert full_size.main([*arguments, "--out", str(out)]) == 1
    first, second = json.loads(out.read_text())["arms"]
    assert "the decoded frames contain NaN" in first["status"]
    assert second["status"] == "complete"
    assert "failed" in capsys.readouterr().out


def test_layouts_are_the_published_ones():
    with torch.device("meta"):
        walk = WalkTransformer(**FULL["hyworldplay"].transformer)
        clip = LongCatTransformer(TransformerConfig.read(FULL["longcat"].transformer, "the layout"))
    assert sum(tensor.numel() for tensor in walk.parameters()) == 5_293_225_152
    assert sum(tensor.numel() for tensor in clip.parameters()) == 13_581_071_424


@pytest.mark.parametrize("backend", sorted(TINY))
def test_random_weights_keep_the_size_of_what_passes(backend):
    options = full_size.parse_options(["--backend", backend, "--size", "tiny", "--out", "unused"])
    models = RandomModels(full_size.load_run(options, "int2"), TINY[backend], torch.device("cpu"))
    for model in (models.transformer, models.vae):
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and parameter.numel() > 500 and "gamma" not in name:
                fan_in = parameter[0].numel() if "scale_shift_table" not in name else parameter.shape[-1]
                assert parameter.std().item() * math.sqrt(fan_in) == pytest.approx(1, rel=0.2), name
