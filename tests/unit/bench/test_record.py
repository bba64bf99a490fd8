"""What `scripts/bench/record.py` keeps, and that the fidelity bench reads it."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config.schema import CacheConfig
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
from qvg_kernels.codecs.plain.spec import NoneSpec
from qvg_kernels.rope.tables import RotaryTables

REPOSITORY = Path(__file__).parents[3]
CHUNKS = [
    ChunkPlan(index, (index,), reads=tuple(range(index)), commits=(index,), is_first_made=index == 0)
    for index in range(5)
]
PLAN = VideoPlan(tokens_per_frame=6, latent_shape=(16, 4, 6), height=32, width=48, chunks=tuple(CHUNKS))


@pytest.fixture
def bench(monkeypatch):
    """The recorder's module."""
    for folder in ("scripts/bench", "kernels/bench"):
        monkeypatch.syspath_prepend(str(REPOSITORY / folder))
    import record

    yield record
    sys.modules.pop("record")


@pytest.fixture
def recording(bench, tmp_path):
    """A file, and the queries of the calls: five chunks of one frame of 2 x 3 tokens, two layers."""
    cache = open_cache(CacheConfig(preset="none", k=NoneSpec(), v=NoneSpec()), PLAN, CacheShape(2, 2, 64), 0)
    recorder = bench.Recorder([1], bench.chunks_of_interest(CHUNKS), 4, 0)
    recorder.begin(cache)
    rotation = FrameRotation(RotaryTables.of(64, 16, torch.device("cpu")), 2, 3)
    asked = {}
    for chunk in CHUNKS:
        commit = cache.begin(chunk).commit
        query, key, value = (torch.randn(1, 2, 6, 64) for _ in range(3))
        asked[chunk.makes] = query
        for layer in cache.layers:
            layer.attend(
                rotation.rotate(query, chunk.makes),
                key,
                value,
                frames=chunk.makes,
                reads=chunk.reads,
                rotation=rotation,
            )
            layer.commit(key, value, chunk.makes, commit)
    path = tmp_path / "recorded.safetensors"
    recorder.keep_history()
    bench.write(path, [recorder], "tiny")
    return path, asked


def test_queries_are_kept_as_they_were_before_rotation(recording):
    path, asked = recording
    with safe_open(path, "pt") as file:
        chunks = json.loads(file.metadata()["recording"])["chunks"]
        assert [chunk["frames"] for chunk in chunks] == [[0], [1], [4]]
        for number, chunk in enumerate(chunks):
            tokens = file.get_tensor(f"tokens{number}").long()
            expected = asked[tuple(chunk["frames"])][:, :, tokens]
            found = file.get_tensor(f"layer1.query{number}").float()
            torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)


def test_the_fidelity_bench_reads_it(recording):
    import fidelity
    from presets import load_preset

    (case,) = fidelity.recorded_cases(recording[0], [6], "cpu")
    rows = list(fidelity.measure(case, [load_preset("int4"), load_preset("trit")]))
    assert [row.sample for row in rows] == ["layer 1, prompt 0"] * 4
    fine, coarse = (sum(row.logit_db for row in rows if row.preset == name) for name in ("int4", "trit"))
    assert fine < coarse - 10


def choose(bench, size_mib):
    """Layers of ten MiB each, of six."""
    shape = CacheShape(6, 2, 640 * 1024 // PLAN.num_frames // 3)
    return bench.choose_layers(Namespace(layers=None, size_mib=size_mib), PLAN, shape, 1)


@pytest.mark.parametrize(("size_mib", "layers"), [(100, [0, 1, 2, 3, 4, 5]), (35, [0, 2, 5]), (12, [0])])
def test_layers_that_fit_are_evenly_spread(bench, size_mib, layers):
    assert choose(bench, size_mib) == layers


def test_a_limit_below_one_layer_is_refused(bench):
    with pytest.raises(SystemExit, match="--size-mib 5 holds no layer: one takes 10 MiB"):
        choose(bench, 5)
