"""Matrices that come with a model: read, checked, part of a run's identity, and none of the cache's bytes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.cache.shaping import read_shipped
from qvg_cli.config.load import Request
from qvg_cli.config.schema import CacheConfig
from qvg_cli.errors import UsageError
from qvg_cli.models.registry import family_of, load_config
from qvg_cli.planning.cache_forecast import CacheShape, predict_payload
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
from qvg_cli.runs.identity import differences, identify, video_ids
from qvg_kernels.spec import FittedSpec

SHAPE = CacheShape(num_layers=2, heads=2, head_dim=64, element_bytes=4)
CHUNKS = tuple(
    ChunkPlan(index, (index,), reads=tuple(range(index)), commits=(index,), is_first_made=index == 0)
    for index in range(3)
)
PLAN = VideoPlan(tokens_per_frame=24, latent_shape=(16, 8, 12), height=64, width=96, chunks=CHUNKS)


def tensors(shape=SHAPE):
    """A matrix of its own for every head, near 1."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for layer in range(shape.num_layers):
        for side in ("key", "value"):
            noise = torch.randn(shape.heads, shape.head_dim, shape.head_dim, generator=generator)
            found[f"layer{layer}.{side}"] = (torch.eye(shape.head_dim) + 0.02 * (noise + noise.mT)).bfloat16()
    return found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "matrices.safetensors"
    save_file(tensors(), path)
    return path


def cache_config(path, shaping=("key", "value")):
    key, value = (FittedSpec(shaping=each) for each in shaping)
    return CacheConfig(preset="test", k=key, v=value, matrices=str(path))


def filled(config):
    cache = open_cache(config, PLAN, SHAPE, seed=1)
    samples = []
    for chunk in CHUNKS:
        step = cache.begin(chunk)
        states = torch.randn(1, 2, 24, 64, generator=torch.Generator().manual_seed(chunk.index))
        for layer in cache.layers:
            layer.commit(states, -states, chunk.makes, step.commit)
        cache.settle(step.commit)
        samples.append(cache.sample(chunk, None))
    return cache, samples


def test_every_block_has_those_of_the_file_and_none_is_learnt(file):
    cache, _ = filled(cache_config(file))
    assert not cache.is_learning
    for layer in cache.layers:
        for entry in layer.entries.values():
            for side, packed in (("key", entry.key), ("value", entry.value)):
                assert packed.matrix[0].equal(tensors()[f"layer{layer.index}.{side}"])
                exact = torch.randn(1, 2, 24, 64, generator=torch.Generator().manual_seed(entry.block.chunk))
                error = entry.decode()[side == "value"] - (exact if side == "key" else -exact)
                assert error.square().mean() < 0.1


def test_the_cache_counts_none_of_their_bytes(file):
    config = cache_config(file)
    cache, samples = filled(config)
    plain, _ = filled(cache_config(file, ("none", "none")))
    assert cache.payload_bytes() == plain.payload_bytes()
    assert samples == [replace(each, logit_rms={}) for each in predict_payload(config, PLAN, SHAPE)]


def test_a_process_takes_those_of_its_heads(file):
    half = replace(SHAPE, heads=1, num_parts=2, part=1)
    matrices = read_shipped(cache_config(file), half)
    assert matrices[1][0].equal(tensors()["layer1.key"][1:])


def changed(path, changes):
    save_file({**tensors(), **changes}, path)


NAN = {"layer1.key": torch.full((2, 64, 64), torch.nan).bfloat16()}
WRONG = {
    "missing": (lambda path: path.unlink(), "there is no such file"),
    "no tensors": (lambda path: path.write_bytes(b"no matrices"), "cannot read the matrices"),
    "too few": (
        lambda path: save_file({"layer0.key": tensors()["layer0.key"]}, path),
        "no matrices layer0.v",
    ),
    "head size": (
        lambda path: save_file(tensors(replace(SHAPE, head_dim=128)), path),
        "heads of 64 channels",
    ),
    "heads": (lambda path: save_file(tensors(replace(SHAPE, heads=3)), path), "has 3 matrices .* 2 heads"),
    "not finite": (lambda path: changed(path, NAN), "is damaged: layer1.key is not finite"),
}


@pytest.mark.parametrize(("write", "message"), WRONG.values(), ids=WRONG)
def test_a_file_that_does_not_fit_is_refused(file, write, message):
    config = cache_config(file)
    write(file)
    with pytest.raises(UsageError, match=message):
        read_shipped(config, SHAPE)


def test_they_are_part_of_what_a_run_is(file):
    def load(*sets):
        return load_config(Request(pocket=True, sets=sets)).config

    config = load("cache.preset=int2-shaped", f"cache.matrices={file}")
    begun, name = identify(config, "cpu"), video_ids([config], "cpu")
    changed(file, {"layer0.key": torch.eye(64).expand(2, -1, -1).bfloat16().contiguous()})
    assert differences(begun, identify(config, "cpu")) == [f"the file {file} has changed"]
    assert video_ids([config], "cpu") != name


def test_a_cache_without_shaped_codecs_has_none_and_says_so(file):
    loaded = load_config(Request(pocket=True, sets=("cache.preset=int2", f"cache.matrices={file}")))
    assert loaded.config.cache.matrices is None
    assert loaded.notes == (
        f"cache.matrices={file} (--set cache.matrices) has no effect: no codec of int2 is shaped",
    )


def test_those_of_the_demo_model_go_with_its_weights(tmp_path):
    def named(*sets):
        return load_config(
            Request(pocket=True, sets=("cache.preset=int2-shaped", *sets))
        ).config.cache.matrices

    assert named() == "self-forcing-pocket"
    assert named(f"model.weights={tmp_path}") is None
    assert named("cache.matrices=null") is None
    assert named("cache.preset=int2") is None


@pytest.mark.parametrize("backend", ["self-forcing", "hyworldplay", "longcat"])
def test_those_that_ship_fit_their_model(backend):
    sets = ("cache.preset=bit1-shaped",)
    config = load_config(Request(pocket=True, backend=backend, sets=sets)).config
    sizes = family_of(config).sizes(config, is_gpu=False)
    shape = CacheShape(sizes.num_layers, sizes.heads, sizes.head_dim)
    assert len(read_shipped(config.cache, shape)) == sizes.num_layers
    assert f"{backend}-pocket" in identify(config, "cpu").inputs
