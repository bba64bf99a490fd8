"""Many videos in one command: one that fails keeps none of the others from being made; parts go on."""

import json
import sys

import pytest
import torch

from qvg_cli.batch.manifest import Manifest
from qvg_cli.batch.store import Store
from qvg_cli.errors import QvgError
from qvg_cli.models.self_forcing.pipeline import SelfForcingDenoiser

SHORT = ("--frames", 9)


@pytest.fixture
def failing(monkeypatch):
    """A function: videos of these seeds fail in the model."""

    def fail(error, *seeds):
        start = SelfForcingDenoiser.denoise

        def denoise(self, chunk, draw_noise, on_step):
            if self.cache.layers[0].seed in seeds:
                raise error
            return start(self, chunk, draw_noise, on_step)

        monkeypatch.setattr(SelfForcingDenoiser, "denoise", denoise)

    return fail


def write_jobs(path, *seeds):
    path.write_text("".join(json.dumps({"prompt": "a red ball", "seed": seed}) + "\n" for seed in seeds))
    return path


def test_bad_lines_and_failures_leave_the_others(tiny, tmp_path, failing):
    file = write_jobs(tmp_path / "jobs.jsonl", 0, 1, 2)
    file.write_text(file.read_text() + '{"prmpt": "x"}\n' + "[" * 100_000 + "\n")
    failing(QvgError("the model broke"), 1)
    result = tiny("--prompts", file, *SHORT, "--out", tmp_path / "out", "--json")
    assert [json.loads(line)["seed"] for line in result.stdout.splitlines()] == [0, 2]
    assert result.exit_code == 1
    last = result.stderr[result.stderr.index("error: ") :].splitlines()
    assert last[0] == "error: 3 of 5 videos failed"
    assert last[1].startswith("  video 2, 'a red ball': the model broke; no frames were kept")
    assert last[2] == f"  {file} line 4: no text under prompt"
    assert last[3] == f"  {file} line 5: not readable JSON"
    names = sorted(path.name for path in (tmp_path / "out" / "self-forcing").iterdir())
    assert names == ["a-red-ball-seed0", "a-red-ball-seed2"]


def test_lack_of_memory_is_told_once_with_what_held_it(tiny, tmp_path, failing):
    denoise, calls = SelfForcingDenoiser.denoise, []

    def run_out(self, chunk, *arguments):
        calls.append(chunk)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return denoise(self, chunk, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SelfForcingDenoiser, "denoise", run_out)
        result = tiny("a red ball", "--frames", 45, "--out", tmp_path, "--json")
    assert result.exit_code == 4
    told = result.stderr[result.stderr.index("error: ") :]
    assert told.startswith("error: out of memory; the first 21 frames (1.31 s) are in ")
    assert "; the KV cache held 0.0" in told
    assert "(codes 0.0" in told
    assert "this process peaked at " in told
    folder = json.loads(result.stdout)["folder"]
    assert f"resume with: qvg generate --resume {folder}" in told
    assert told.count("out of memory") == 1


def test_a_part_goes_on_where_it_was_stopped(tiny, tmp_path, failing, monkeypatch):
    file = write_jobs(tmp_path / "jobs.jsonl", 0, 1, 2, 3, 4)
    file.write_text(file.read_text() + "[]\n")
    arguments = ("--prompts", file, "--shard", "1/2", *SHORT, "--out", tmp_path / "out")
    manifest = tmp_path / "out" / "self-forcing" / "jobs-1-of-2.json"
    with monkeypatch.context() as patch:
        patch.setattr(SelfForcingDenoiser, "denoise", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        assert tiny(*arguments).exit_code == 130
    assert not manifest.exists()
    failing(QvgError("the model broke"), 2)
    assert tiny(*arguments).exit_code == 1
    written = json.loads(manifest.read_text())
    assert written["status"] == "partial"
    assert [(video["seed"], video["status"]) for video in written["videos"]] == [
        (0, "complete"),
        (2, "failed"),
        (4, "complete"),
    ]
    assert [said.partition(":")[0] for said in written["left_out"]] == [f"{file} line 6"]
    write_jobs(file, 0, 1, 2, 3, 4)
    made = {path: path.stat().st_mtime_ns for path in manifest.parent.glob("*/latents.safetensors")}
    monkeypatch.undo()
    result = tiny(*arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"{manifest.parent}/a-red-ball-seed{seed}/video.mp4" for seed in (0, 2, 4)
    ]
    assert json.loads(manifest.read_text())["status"] == "complete"
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert "loading" not in tiny(*arguments).stderr


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_what_is_no_part_is_refused(tiny, tmp_path, shard):
    result = tiny("--prompts", tmp_path / "p.txt", f"--shard={shard}", "--out", tmp_path / "out")
    assert (result.exit_code, f"--shard {shard} is not a shard" in result.stderr) == (2, True)


def test_a_part_of_nothing_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--shard needs --prompts" in tiny("a red ball", "--shard", "1/2").stderr
    file = write_jobs(tmp_path / "jobs.jsonl", 0)
    assert "has fewer prompts" in tiny("--prompts", file, "--shard", "2/2", *SHORT).stderr
    assert not (tmp_path / "results").exists()


@pytest.fixture
def batch(tiny, qvg, tmp_path):
    """A function: `qvg batch` of two jobs, without Ray."""
    return lambda *given: qvg("batch", write_jobs(tmp_path / "jobs.jsonl", 0, 1), *tiny.arguments, *given)


def test_without_ray_a_batch_says_how_to_get_it(batch, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = batch("--out", tmp_path / "out")
    assert (result.exit_code, 'pip install "qvg[ray]"' in result.stderr) == (3, True)


def test_the_status_of_a_batch_is_told_from_anywhere(qvg, tmp_path):
    missing = qvg("batch", "--status", tmp_path / "none").stderr.splitlines()
    assert missing == [
        f"error: no batch in {tmp_path}/none: manifest.jsonl is missing or empty",
        "",
        f"hint: use the --out of a batch; qvg batch PROMPTS --out {tmp_path}/none begins one",
    ]
    place = f"memory://{tmp_path.name}"
    manifest = Manifest(Store(place))
    manifest.begin("p.jsonl", ["a", "b", "c"], 1, [])
    shown = {"prompt": "a red ball", "seed": 0, "worker": "one:1"}
    manifest.add({"id": "a", **shown, "folder": "x/a", "status": "failed", "tries": 3, "error": "broken"})
    manifest.add({"id": "b", **shown, "folder": "x/b", "status": "running", "tries": 2})
    manifest.end()
    assert qvg("batch", "--status", place).stdout.splitlines() == [
        "0 of 3 videos, 1 failed, 1 running",
        "one:1 makes x/b, try 2",
        "'a red ball', tried 3 times: broken",
    ]
    assert json.loads(qvg("batch", "--status", place, "--json").stdout)["waiting"] == 1


def test_what_a_batch_cannot_do_is_refused(batch, qvg, tmp_path):
    jobs = tmp_path / "jobs.jsonl"
    assert "no PROMPTS given" in qvg("batch").stderr
    assert "PROMPTS and --status were both given" in qvg("batch", jobs, "--status", tmp_path).stderr
    assert "cannot use the address nosuch://x" in batch("--out", "nosuch://x").stderr
    assert "3 processes cannot share the 1 attention heads" in batch("--gpus-per-worker", 3).stderr
