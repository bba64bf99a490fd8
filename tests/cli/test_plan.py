"""`qvg plan` and `--dry-run`: what is told before a video is made, and that a made one agrees."""

import json
from pathlib import Path

import pytest


def test_a_plan_agrees_with_the_run_that_is_made(qvg, tiny, finished):
    _, made = finished
    memory = json.loads(Path(made["memory"]).read_text())
    told = tiny("a red ball", "--frames", 33, "--seed", 5, "--device", "cpu", "--dry-run", "--json")
    assert told.exit_code == 0, told.stderr
    plan = json.loads(told.stdout)
    (cache,) = plan["caches"]
    assert (plan["pixel_frames"], plan["chunks"]) == (33, len(memory["chunks"]))
    for name in ("bytes", "kinds", "bf16_bytes", "chunk"):
        assert cache["cache_peak"][name] == memory["peak"][name]
    assert cache["cache_end"]["bytes"] == memory["end"]["bytes"]
    assert plan["download"]["bytes"] == 0
    assert plan["card"] is None


def test_nothing_is_made(tiny, tmp_path):
    out = tmp_path / "out"
    assert tiny("a red ball", "--frames", 33, "--out", out, "--dry-run").exit_code == 0
    assert not out.exists()


def test_an_extension_is_planned_from_its_run(qvg, finished):
    _, made = finished
    told = qvg("extend", made["folder"], "--frames", 12, "--dry-run", "--json")
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["pixel_frames"] == 45


def test_caches_side_by_side_against_a_card(qvg):
    arguments = ["plan", "--backend", "self-forcing", "--seconds", "45", "--cache", "int2", "--cache", "bf16"]
    told = qvg(*arguments, "--card", "RTX 4090")
    assert told.exit_code == 0, told.stderr
    lines = told.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("int2: fits, ") for line in lines)
    assert any(line.startswith("bf16: does not fit, ") for line in lines)
    assert any(line.startswith("  --cache int") for line in lines)
    plan = json.loads(qvg(*arguments, "--card", "RTX 4090", "--json", "--quiet").stdout)
    int2, bf16 = plan["caches"]
    assert int2["cache_peak"]["bf16_bytes"] == bf16["cache_peak"]["bytes"]
    assert plan["download"] == {
        "name": "self-forcing",
        "is_there": False,
        "bytes": None,
        "converted_bytes": 2837993600,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--card", "RTX 5099"], "unknown card 'RTX 5099'"),
        (["plan", "--cache", "int9"], "unknown cache preset 'int9'"),
        (["plan", "--frames", "80"], "--frames 80 does not fit"),
        (["generate", "--card", "24GiB"], "--card has no effect without --dry-run"),
        (["generate", "--resume", "x", "--dry-run"], "--dry-run and --resume were both given"),
    ],
)
def test_bad_requests(qvg, arguments, said):
    result = qvg(*arguments)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
