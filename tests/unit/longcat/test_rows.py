"""The rows of the guidance apart: row by row in one process, and in two that torchrun starts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from qvg_cli.config.load import Request
from qvg_cli.engine.rollout import rollout
from qvg_cli.main import app
from qvg_cli.models.registry import load_config, load_pipeline, plan_video
from qvg_cli.report.run_files import read_result

SETTINGS = {
    "video.height": 32,
    "video.width": 48,
    "sampler.window": 6,
    "sampler.frames_per_chunk": 2,
    "sampler.guided_steps": 3,
    "sampler.negative_prompt": "red",
    "model.text_tokens": 8,
    "cache.preset": "int2",
    "prompt": "red ball",
}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


class OneByOne:
    """Every row in a call of its own."""

    def compute(self, predict, num_rows):
        return torch.cat([predict(slice(row, row + 1)) for row in range(num_rows)])


def sets(weights, **changes):
    values = {**SETTINGS, "model.weights": weights, **changes}
    return [f"{name}={value}" for name, value in values.items()]


def options(*arguments):
    return [part for text in sets(*arguments) for part in ("--set", text)]


def make(weights, num_frames, rows=None, device="cpu", **changes):
    request = Request(backend="longcat", sets=[*sets(weights, **changes), f"video.frames={num_frames}"])
    config = load_config(request).config
    pipeline, plan = load_pipeline(config, torch.device(device)), plan_video(config)
    if rows is not None:
        pipeline = pipeline.with_rows(rows)
    session = pipeline.start(plan, pipeline.encode_prompt(config.prompt), config.seed)
    results = rollout(plan, session, pipeline.decoder(), pipeline.noise(plan, config.seed))
    return torch.cat([result.latents.cpu() for result in results], dim=2)


def latents_of(folder):
    return load_file(Path(folder) / "latents.safetensors")["latents"]


def test_rows_one_by_one_are_the_rows_together(longcat_weights):
    together, apart = (make(longcat_weights, 8, rows) for rows in (None, OneByOne()))
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("processes", "arguments", "message"),
    [
        (3, ["--backend", "longcat"], "3 processes were started; a video is made by one, or by the two that"),
        (2, [], "two processes were started, and self-forcing computes one row a step"),
        (2, ["--backend", "longcat", "--set", "sampler.guidance=1"], "and longcat computes one row a step"),
        (2, ["--backend", "longcat", "--set", "sampler.mode=distilled"], "longcat computes one row a step"),
    ],
)
def test_processes_that_cannot_share_a_run_are_refused(monkeypatch, tmp_path, processes, arguments, message):
    environment = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    for name, value in {**environment, "TORCHELASTIC_RUN_ID": "one"}.items():
        monkeypatch.setenv(name, str(value))
    result = CliRunner().invoke(app, ["generate", "a", *arguments, "--device", "cpu", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.rglob("run.yaml"))


@pytest.mark.slow
def test_two_processes_make_what_one_makes(longcat_weights, tmp_path):
    command = ["generate", "--backend", "longcat", *options(longcat_weights), "--segments", "1", "--json"]
    command = [*TORCHRUN, "-m", "qvg_cli", *command, "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    base = json.loads(done.stdout)
    assert done.stderr.count("chunk 2/2") == 1
    # Bit for bit, where rows are not computed side by side.
    assert torch.equal(latents_of(base["folder"]), make(longcat_weights, 8, OneByOne()))

    more = [*TORCHRUN, "-m", "qvg_cli", "extend", base["folder"], "--out", str(tmp_path), "--json"]
    done = subprocess.run(more, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(latents_of(json.loads(done.stdout)["folder"]), make(longcat_weights, 10, OneByOne()))


@pytest.mark.gpu
def test_two_gpus_make_what_one_makes(longcat_weights, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    command = [*options(longcat_weights), "--set", "model.dtype=float32", "--segments", "1", "--json"]
    command = [*TORCHRUN, "-m", "qvg_cli", "generate", "--backend", "longcat", *command]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["device"] == "cuda:0"
    expected = make(longcat_weights, 8, OneByOne(), "cuda:0", **{"model.dtype": "float32"})
    torch.testing.assert_close(latents_of(made["folder"]), expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_ctrl_c_ends_both_and_what_was_made_goes_on(longcat_weights, tmp_path):
    command = ["generate", "--backend", "longcat", *options(longcat_weights), "--segments", "400"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        group = subprocess.Popen(
            [*TORCHRUN, "-m", "qvg_cli", *command, "--device", "cpu", "--out", str(tmp_path)],
            stdout=stream,
            stderr=stream,
        )
        started = time.monotonic()
        while "chunk 3/401" not in log.read_text():
            assert group.poll() is None, log.read_text()
            assert time.monotonic() - started < 100
            time.sleep(0.1)
        children = _children(group.pid)
        assert len(children) == 2
        group.send_signal(signal.SIGINT)
        group.wait(timeout=25)
    assert "error: stopped; the first " in log.read_text()
    assert "second process" not in log.read_text()
    assert not [child for child in children if _is_alive(child)]
    (run,) = (tmp_path / "longcat").iterdir()
    figures = read_result(run).figures
    assert figures["status"] == "interrupted"
    made = latents_of(run)
    assert torch.equal(made, make(longcat_weights, made.shape[2], OneByOne()))


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
