"""`qvg plan` and `--dry-run`: what is told before a video is made, and that a made one agrees."""

import json
from pathlib import Path

import pytest
import torch

from qvg_cli.config.load import Request
from qvg_cli.console import Console
from qvg_cli.engine.jobs import Planned
from qvg_cli.errors import OutOfMemoryError
from qvg_cli.models.registry import load_config, plan_video
from qvg_cli.planning.cards import GIB
from qvg_cli.runs.make import warn_of_memory


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


def test_an_extension_is_planned_from_its_run(qvg, finished, tmp_path):
    _, made = finished
    arguments = ("extend", made["folder"], "--frames", 12, "--device", "cpu", "--out", tmp_path, "--json")
    told = qvg(*arguments, "--dry-run")
    assert told.exit_code == 0, told.stderr
    assert not list(tmp_path.iterdir())
    plan = json.loads(told.stdout)
    memory = json.loads(Path(json.loads(qvg(*arguments).stdout)["memory"]).read_text())
    assert (plan["pixel_frames"], plan["chunks"]) == (45, len(memory["chunks"]))
    assert plan["caches"][0]["cache_peak"]["kinds"] == memory["peak"]["kinds"]


def test_caches_side_by_side_against_a_card(qvg):
    arguments = ["plan", "--backend", "self-forcing", "--seconds", "45", "--cache", "int2", "--cache", "bf16"]
    told = qvg(*arguments, "--card", "RTX 4090")
    assert told.exit_code == 0, told.stderr
    lines = told.stdout.splitlines()
    assert any(
        line.startswith("download  about 29 GB, plus 2.64 GiB for the converted checkpoint") for line in lines
    )
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
        "about_bytes": 29 * 10**9,
        "converted_bytes": 2837993600,
    }


def test_what_takes_no_memory_has_no_row(qvg):
    told = qvg("plan", "--seconds", 1, "--gpu", "24GiB", "--set", "memory.vae=model").stdout
    assert "VAE activations" in told
    assert " 0.00" not in told


def test_several_gpus_divide_the_cache_and_the_first_decodes(qvg):
    def plan(*arguments):
        told = qvg("plan", "--backend", "self-forcing", "--seconds", 20, "--quiet", *arguments)
        assert told.exit_code == 0, told.stderr
        return told.stdout

    (alone,) = json.loads(plan("--json"))["caches"]
    for num_gpus in (2, 4):
        found = json.loads(plan("--json", "--gpus", num_gpus))
        (first,) = found["caches"]
        assert found["gpus"] == num_gpus
        assert num_gpus * first["cache_peak"]["bytes"] == alone["cache_peak"]["bytes"]
        peaks = [sum(each["peak"]["bytes"].values()) for each in (first, alone)]
        assert first["others_device_bytes"] < peaks[0] < peaks[1]
    sharded = json.loads(plan("--json", "--gpus", 4, "--set", "memory.weights_sharded=true"))["caches"][0]
    # Two blocks whole, and a quarter of the thirty.
    assert sharded["peak"]["bytes"]["transformer"] < 0.4 * first["peak"]["bytes"]["transformer"]
    assert "int2: every other GPU" in plan("--gpus", 2)


def test_a_run_on_a_gpu_is_checked_before_anything_is_loaded(monkeypatch, capsys):
    # What a machine with a small GPU would say.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Small Card")

    def check(latent_frames):
        sets = ("cache.preset=bf16", f"video.frames={latent_frames}")
        config = load_config(Request(backend="self-forcing", sets=sets)).config
        video = Planned(config, plan_video(config), "name")
        warn_of_memory(video, torch.device("cuda", 0), Console(), name="bf16")
        return capsys.readouterr().err

    assert check(21) == ""
    said = "20480 of the 24576 MiB on Small Card are usable; settings that need less: --cache int4"
    warning = check(81)
    assert warning.startswith("bf16: chunk ")
    assert said in warning
    with pytest.raises(OutOfMemoryError, match="Small Card"):
        check(180)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--card", "RTX 5099"], "unknown GPU 'RTX 5099'"),
        (["plan", "--cache", "int9"], "unknown cache preset 'int9'"),
        (["plan", "--backend", "self-forcing", "--gpus", "5"], "start 2, 3, 4, 6, 12"),
        (["plan", "--set", "memory.weights_sharded=true"], "needs several processes, and this is one"),
        (["plan", "--pocket", "--set", "video.decoder=taehv"], "the VAE in"),
        (["generate", "--card", "24GiB"], "--gpu has no effect without --dry-run"),
        (["generate", "--resume", "x", "--dry-run"], "--dry-run and --resume were both given"),
    ],
)
def test_bad_requests(qvg, arguments, said):
    result = qvg(*arguments)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
