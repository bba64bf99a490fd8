"""Prompts that change inside a video: where they may, what they change, and what they leave as it was."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file


def latents_of(made):
    return load_file(made["latents"])["latents"]


@pytest.fixture
def schedule(tmp_path):
    def write(*lines):
        file = tmp_path / "schedule.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        return file

    return write


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain")
    return json.loads(tiny("a red ball", "--frames", 45, "--out", out, "--json").stdout)


def test_a_prompt_changes_from_its_chunk_on(plain, tiny, schedule, tmp_path, qvg):
    file = schedule({"frame": 21, "prompt": "ball"}, {"seconds": 2.06, "prompt": "red"})
    result = tiny("a red ball", "--frames", 45, "--schedule", file, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    old, new = latents_of(plain), latents_of(made)
    # Frame 21 is the first of the third chunk, 2.06 s is frame 33, the first of the fourth.
    assert torch.equal(old[:, :, :6], new[:, :, :6])
    assert not torch.equal(old[:, :, 6:9], new[:, :, 6:9])
    changes = yaml.safe_load(Path(made["config"]).read_text())["prompt_changes"]
    assert changes == [{"frame": 21, "prompt": "ball"}, {"frame": 33, "prompt": "red"}]

    again = qvg("generate", "--config", made["config"], "--out", tmp_path / "again", "--json")
    assert torch.equal(latents_of(json.loads(again.stdout)), new)
    one = tiny("--schedule", schedule({"chunk": 1, "prompt": "ball"}, {"chunk": 3, "prompt": "a red ball"}),
               "--frames", 33, "--out", tmp_path, "--json")  # fmt: skip
    assert json.loads(one.stdout)["prompt"] == "ball"


@pytest.mark.slow
def test_a_run_goes_on_with_its_prompts(tiny, schedule, tmp_path, qvg):
    file = schedule({"frame": 9, "prompt": "ball"}, {"frame": 33, "prompt": "red"})
    whole = tiny("a red ball", "--frames", 45, "--schedule", file, "--out", tmp_path, "--json")
    file = schedule({"frame": 9, "prompt": "ball"})
    half = tiny("a red ball", "--frames", 33, "--schedule", file, "--out", tmp_path, "--json")
    folder = json.loads(half.stdout)["folder"]
    # The frames of a schedule count what is new.
    file = schedule({"frame": 0, "prompt": "red"})
    more = qvg("extend", folder, "--frames", 12, "--schedule", file, "--out", tmp_path, "--json")
    assert more.exit_code == 0, more.stderr
    assert torch.equal(latents_of(json.loads(more.stdout)), latents_of(json.loads(whole.stdout)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"frame": 400, "prompt": "x"}], "at frame 400 or later; the last one starts at frame 33 (2.06 s)"),
        ([{"frame": 10, "prompt": "x"}, {"frame": 20, "prompt": "y"}], "line 2: frame 20 is not after the"),
        ([{"chunk": 9, "prompt": "x"}], "schedule.jsonl line 1: chunk 9: there are 4 new chunks"),
        ([{"frame": 21, "prompt": "x"}, {"chunk": 2, "prompt": "y"}], "line 2: chunk 2 is not after the"),
        ([{"frame": 0, "prompt": "x"}], "PROMPT and a prompt at the start of"),
        ([{"prompt": "x"}], "line 1: next to prompt, one of frame, seconds, chunk is needed"),
        ([{"frame": True, "prompt": "x"}], "line 1: frame=True is not a number from 0 on"),
        ([{"frame": 21}], "line 1: no text under prompt"),
        ([], "contains no prompt"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused(tiny, schedule, tmp_path, lines, message):
    result = tiny("a", "--frames", 45, "--schedule", schedule(*lines), "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_prompts_that_run_yaml_cannot_hold_are_refused_at_the_start(tiny, schedule, tmp_path):
    lines = [{"frame": frame, "prompt": "x" * 400_000} for frame in (9, 21, 33)]
    result = tiny("a", "--frames", 45, "--schedule", schedule(*lines), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "characters as YAML; the limit is 1000000\n\nhint: use fewer or shorter prompts" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"frame": 20, "prompt": "x"},
            "frame 20 rounded up to the next chunk, which starts at frame 21",
        ),
        (
            {"seconds": 1.3, "prompt": "x"},
            "1.3 s rounded up to the next chunk, which starts at frame 21",
        ),
        ({"seconds": 1.31, "prompt": "x"}, None),
        ({"frame": 21, "prompt": "x"}, None),
    ],
    ids=str,
)
def test_a_prompt_inside_a_chunk_begins_with_the_next_one(tiny, schedule, tmp_path, line, said):
    result = tiny("a", "--frames", 45, "--schedule", schedule(line), "--out", tmp_path, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert ("rounded up to the next chunk" in result.stderr) == (said is not None)
    assert said is None or f"schedule.jsonl line 1: {said} (1.31 s)" in result.stderr
