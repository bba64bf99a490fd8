"""`scripts/bench/shape.py` learns of whole videos what a shaped cache learns of their first two chunks."""

import sys
from pathlib import Path

import pytest
import torch

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config.schema import CacheConfig
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
from qvg_kernels.codecs.plain.spec import NoneSpec
from qvg_kernels.rope.tables import RotaryTables
from qvg_kernels.spec import FittedSpec

CHUNKS = tuple(
    ChunkPlan(index, (index,), reads=tuple(range(index)), commits=(index,), is_first_made=index == 0)
    for index in range(2)
)
PLAN = VideoPlan(tokens_per_frame=96, latent_shape=(16, 16, 24), height=128, width=192, chunks=CHUNKS)


@pytest.fixture
def bench(monkeypatch):
    """The script's module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "scripts/bench"))
    import shape

    yield shape
    for name in ("shape", "record"):
        sys.modules.pop(name)


def test_it_learns_what_a_shaped_cache_learns(bench):
    exact, shaped = (
        open_cache(CacheConfig(preset="test", k=key, v=value), PLAN, CacheShape(1, 2, 64), seed=0)
        for key, value in (
            (NoneSpec(), NoneSpec()),
            (FittedSpec(shaping="key"), FittedSpec(shaping="value")),
        )
    )
    learner = bench.Learner(1)
    learner.begin(exact)
    rotation = FrameRotation(RotaryTables.of(64, 16, torch.device("cpu")), 8, 12)
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.2, 3, 64)
    for chunk in CHUNKS:
        query, key, value = (
            scale * torch.randn(1, 2, 96, 64, generator=generator)
            for scale in (spread.flip(0), spread, spread)
        )
        for cache in (exact, shaped):
            commit = cache.begin(chunk).commit
            cache.layers[0].observe(query, chunk.makes, rotation)
            cache.layers[0].commit(key, value, chunk.makes, commit)
        learner.add(chunk)
    for found, expected in zip(learner.layers[0].learnt(), shaped.layers[0].shaping.versions[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
        assert (expected[0, 0].diagonal() - 1).abs().max() > 0.2
