"""`qvg batch` as a program, on a real Ray of two workers: what is lost, killed or broken, and what is not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
PROGRAM = [sys.executable, "-m", "qvg_cli"]
SMALL = ["--size", "112x64", "--frames", "33", "--cache", "int2-qvg"]
CHUNKS = 3


class Started:
    """`qvg batch` under way.

    Args:
        jobs: Its file.
        out: Its folder.
    """

    def __init__(self, jobs, out, *options):
        self.out = out
        command = [*PROGRAM, "batch", jobs, "--out", out, *SMALL, "--workers", 2, *options]
        # Sockets have short names.
        environment = {**os.environ, "RAY_TMPDIR": "/tmp"}
        self.program = subprocess.Popen(
            [*map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def end(self, seconds=600):
        """Exit code, lines of stdout, and stderr."""
        stdout, stderr = self.program.communicate(timeout=seconds)
        return self.program.returncode, stdout.splitlines(), stderr

    def rows(self):
        """Lines of its manifest."""
        manifest = self.out / "manifest.jsonl"
        return [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []

    def wait_for_chunk(self, chunk):
        """The line of a job whose checkpoint has so many chunks."""
        while self.program.poll() is None:
            for row in self.rows():
                folder = self.out / row.get("folder", "") / "state"
                if row.get("status") == "running" and len(list(folder.glob("0*.json"))) == chunk:
                    return row
            time.sleep(0.02)
        pytest.fail(self.end()[2])


def write_jobs(path, *seeds):
    lines = [json.dumps({"prompt": "a large red ball bounces on grass", "seed": seed}) for seed in seeds]
    path.write_text("\n".join(lines) + "\n")
    return path


def last_rows(rows):
    return {row["seed"]: row for row in rows if "id" in row}


def test_a_broken_job_and_a_killed_worker_cost_nothing_else(tmp_path):
    """Twelve jobs: the folder of one cannot be made, and a worker is killed amid the video of another."""
    jobs, out = write_jobs(tmp_path / "jobs.jsonl", *range(12)), tmp_path / "out"
    first = Started(write_jobs(tmp_path / "one.jsonl", 7), out)
    assert first.end()[0] == 0
    [whole] = [row for row in first.rows() if row.get("status") == "complete"]
    # What was made of job 7 goes, and a file stands where its folder has to be.
    subprocess.run(["rm", "-r", out / whole["folder"]], check=True)
    (out / whole["folder"]).touch()

    batch = Started(jobs, out)
    killed = batch.wait_for_chunk(1)
    os.kill(int(killed["worker"].split(":")[1]), signal.SIGKILL)
    code, shown, stderr = batch.end()
    assert code == 1
    rows = last_rows(batch.rows())
    assert {seed for seed, row in rows.items() if row["status"] == "complete"} == set(range(12)) - {7}
    assert (rows[7]["status"], rows[7]["tries"]) == ("failed", 3)
    assert (rows[killed["seed"]]["tries"], rows[0 if killed["seed"] else 1]["tries"]) == (2, 1)
    assert sorted(shown) == sorted(
        f"{out}/{row['folder']}/video.mp4" for seed, row in rows.items() if seed != 7
    )
    assert stderr.splitlines()[-2].startswith("error: 1 of 12 videos failed")
    assert "resuming after chunk" in (out / killed["folder"] / "run.log").read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["complete"], summary["failed"]) == ("partial", 11, 1)
    assert [row["seed"] for row in summary["failures"]] == [7]

    words = ["generate", "a large red ball bounces on grass", "--seed", str(killed["seed"]), *SMALL]
    plain = subprocess.run(
        [*PROGRAM, *words, "--out", str(tmp_path / "plain")], capture_output=True, text=True, check=True
    )
    undisturbed = Path(plain.stdout.strip()).parent
    for name in ("latents.safetensors", "video.mp4"):
        assert (out / killed["folder"] / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_workers_and_the_same_command_goes_on(tmp_path, number):
    out = tmp_path / "out"
    batch = Started(write_jobs(tmp_path / "jobs.jsonl", 0, 1, 2, 3), out)
    begun = batch.wait_for_chunk(1)
    batch.program.send_signal(number)
    code, _, stderr = batch.end()
    assert (code, stderr.splitlines()[-1]) == (75, "hint: run the same command to continue")
    rows = last_rows(batch.rows())
    assert rows[begun["seed"]]["status"] in ("stopped", "complete")
    assert json.loads((out / "summary.json").read_text())["waiting"] >= 1
    again = Started(write_jobs(tmp_path / "jobs.jsonl", 0, 1, 2, 3, 4), out)
    assert again.end()[0] == 0
    assert [row["status"] for row in last_rows(again.rows()).values()] == ["complete"] * 5
    if rows[begun["seed"]]["status"] == "stopped":
        assert "resuming after chunk" in (out / begun["folder"] / "run.log").read_text()
    page = (out / "index.html").read_text()
    assert (page.count("<video"), "http-equiv" in page) == (5, False)


def test_several_processes_make_a_video_and_it_is_moved_to_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    out = tmp_path / "out"
    jobs = write_jobs(tmp_path / "jobs.jsonl", 0, 1)
    batch = Started(jobs, f"file://{out}", "--workers", 1, "--gpus-per-worker", 2)
    code, shown, stderr = batch.end()
    assert code == 0, stderr
    assert sorted(shown) == sorted(f"file://{path}" for path in out.rglob("video.mp4"))
    assert len(shown) == 2
    assert not list(tmp_path.glob("qvg-batch-*/*/*/*"))
    status = subprocess.run(
        [*PROGRAM, "batch", "--status", f"file://{out}"], capture_output=True, text=True, check=True
    )
    assert status.stdout.startswith("2 of 2 videos")
    assert Started(jobs, f"file://{out}").end()[1] == []


def test_a_model_that_cannot_be_loaded_is_told_once(tiny_weights, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(tiny_weights, weights)
    (weights / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    jobs = write_jobs(tmp_path / "jobs.jsonl", 0, 1)
    code, shown, stderr = Started(jobs, tmp_path / "out", "--set", f"model.weights={weights}").end()
    assert (code, shown) == (3, [])
    assert stderr.count("error: ") == stderr.count(f"{weights}/transformer") == 1
