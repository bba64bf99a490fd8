"""A cut-off run goes on in another process, on the same GPU, to the same latents, pixels and packed bytes.

As a program, this file makes one half: the first process makes the whole videos and writes their first
chunks, the second goes on from what it finds on the disk.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvg_cli.cache.snapshot import block_tensors
from qvg_cli.config.load import Request
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.files import RunDir
from qvg_cli.models.registry import load_config, plan_video
from qvg_cli.runs.run import Run

PRESETS = ("int2", "int2-qvg", "bf16")
CUT = 3
SMALL = ("video.height=96", "video.width=160", "video.frames=21", "sampler.window=12", "sampler.sink=3")
# Read when CUDA starts.
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def configured(preset):
    return load_config(Request(pocket=True, sets=(*SMALL, f"cache.preset={preset}"))).config


class Looked(Run):
    """A run whose cache can be looked into."""

    def begin(self, cache):
        self.cache = cache
        return super().begin(cache)


def begin(folder, preset, device):
    """A run in `folder`, and its chunks."""
    config = configured(preset)
    video = Planned(config, plan_video(config), "video")
    (folder / "run").mkdir(exist_ok=True)
    run = Looked(video, RunDir(folder / "run"), device, print)
    return run, Engine.load_config(config, device).rollout(video, run)


def make_whole(folder, preset, device):
    """One run without a cut; its chunks before `CUT` are written as the command does."""
    run, made = begin(folder, preset, device)
    results = []
    for result in made:
        if len(results) < CUT:
            run.add(result)
        results.append(result)
    run.close()
    keep(folder / "whole.safetensors", results[CUT:], run.cache)


def go_on(folder, preset, device):
    """The chunks after `CUT`, from what the other process has written."""
    run, made = begin(folder, preset, device)
    assert run.summary.resumed_after == CUT
    keep(folder / "rest.safetensors", list(made), run.cache)
    run.close()


def keep(path, results, cache):
    packed, _ = block_tensors(cache, cache.plan.blocks)
    made = {
        f"{name}/{result.chunk.index}": getattr(result, name).cpu()
        for result in results
        for name in ("latents", "frames")
    }
    save_file({**made, **packed}, path)


@pytest.fixture(scope="module", params=["as it comes", "deterministic"])
def made(request, tmp_path_factory):
    """A folder with the two halves of every preset, each half made by a process of its own."""
    folder = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if request.param == "deterministic":
        environment.update(DETERMINISTIC)
    for half in ("whole", "rest"):
        command = [sys.executable, __file__, half, str(folder), "cuda", request.param]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("preset", PRESETS)
def test_a_cut_off_run_goes_on_to_the_same_bits_on_a_gpu(made, preset):
    whole, rest = (load_file(made / preset / f"{half}.safetensors") for half in ("whole", "rest"))
    assert whole.keys() == rest.keys()
    assert [name for name in whole if not whole[name].equal(rest[name])] == []


def main(half, folder, device, settings):
    """Make one half of every preset."""
    torch.use_deterministic_algorithms(settings == "deterministic")
    for preset in PRESETS:
        place = Path(folder) / preset
        place.mkdir(exist_ok=True)
        {"whole": make_whole, "rest": go_on}[half](place, preset, torch.device(device))


if __name__ == "__main__":
    main(*sys.argv[1:])
