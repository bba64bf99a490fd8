"""A cut-off run goes on in another process, on the same GPU, to the same latents, pixels and packed bytes.

As a program, this file makes one half: the first process makes the whole videos and puts their first chunks
away, the second goes on from what it finds on the disk.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.cache.snapshot import block_tensors, is_packing, read_blocks
from qvg_cli.config.load import Request
from qvg_cli.engine.noise import SeededNoise
from qvg_cli.engine.rollout import Done, rollout
from qvg_cli.models.registry import family_of, load_config, load_pipeline, plan_video
from qvg_cli.runs.chunk_store import CACHE, LATENTS, ChunkRecord, ChunkStore, Held
from qvg_cli.runs.identity import identify

PRESETS = ("int2", "int2-qvg", "bf16")
CUT = 3
SMALL = ("video.height=96", "video.width=160", "video.frames=21", "sampler.window=12", "sampler.sink=3")
# Read when CUDA starts.
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def configured(preset):
    return load_config(Request(pocket=True, sets=(*SMALL, f"cache.preset={preset}"))).config


class Begun:
    """A video before its first chunk, with an empty cache."""

    def __init__(self, config, device):
        self.plan = plan_video(config)
        self._pipeline = load_pipeline(config, device)
        self.cache = open_cache(config.cache, self.plan, self._pipeline.cache_shape, config.seed)
        embeds = self._pipeline.encode_prompt(config.prompt)
        self._denoiser = self._pipeline.denoiser(
            self.cache, family_of(config).planner(config), embeds, config.seed
        )
        self._noise = SeededNoise(self.plan, config.seed, self._pipeline.latents_dtype, device)

    def results(self, done=None):
        chunks = self.plan.chunks[len(done.chunks) if done else 0 :]
        return rollout(chunks, self._denoiser, self._pipeline.decoder(), self._noise, done=done)


def make_whole(folder, preset, device):
    """One run without a cut; its chunks before `CUT` are put away as the command does."""
    config = configured(preset)
    video = Begun(config, device)
    store = ChunkStore(folder, identify(config, device.type).hash())
    results = []
    for result in video.results():
        if len(results) < CUT:
            put_away(store, result, video.cache, video.plan.chunks[result.chunk.index + 1])
        results.append(result)
    keep(folder / "whole.safetensors", results[CUT:], video.cache)


def put_away(store, result, cache, following):
    chunk = result.chunk.index
    files = {LATENTS: store.write(chunk, LATENTS, save({"latents": result.latents.cpu()}))}
    held = cache.plan.blocks_after(following.evicts) if is_packing(cache) else ()
    tensors, about = block_tensors(cache, [block for block in held if block.chunk == chunk])
    if tensors:
        files[CACHE] = store.write(chunk, CACHE, save(tensors))
    store.commit(
        ChunkRecord(
            run=store.run,
            chunk=chunk,
            files=files,
            entries=about,
            held=tuple(Held.of(block) for block in held),
            has_history=is_packing(cache),
            memory=result.memory,
            num_frames=0,
            chunk_seconds=result.seconds,
            seconds=result.seconds,
        )
    )


def go_on(folder, preset, device):
    """The chunks after `CUT`, from what the other process has put away."""
    config = configured(preset)
    video = Begun(config, device)
    store = ChunkStore(folder, identify(config, device.type).hash())
    records = list(store.records())
    assert len(records) == CUT
    latents = torch.cat([load(store.read(record, LATENTS))["latents"] for record in records], dim=2)
    last = records[-1]
    done = Done(video.plan.chunks[:CUT], latents.to(device), last.has_history)
    if last.has_history:
        found = {}
        for record in records:
            tensors = load(store.read(record, CACHE)) if CACHE in record.files else {}
            found |= read_blocks(tensors, record.entries, record.chunk, video.cache, device)
        layers = [[found[held.block][layer.index] for held in last.held] for layer in video.cache.layers]
        video.cache.restore(done.chunks, layers)
    keep(folder / "rest.safetensors", list(video.results(done)), video.cache)


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
