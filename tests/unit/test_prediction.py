"""The error that packing is predicted to bring to logits, beside what it brings."""

import pytest
import torch

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.cache.prediction import LogitErrors, predicted_rms
from qvg_cli.config.schema import CacheConfig
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
from qvg_cli.planning.ledger import by_layer
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.rope.moments import FRAMES
from qvg_kernels.rope.tables import RotaryTables
from qvg_kernels.spec import Bf16Spec, QvgSpec

FRAME, TOKENS, HEAD_DIM = (2, 3), 6, 64
CHUNKS = tuple(ChunkPlan(index, (index,), reads=tuple(range(index)), commits=(index,)) for index in range(3))
ROTATION = FrameRotation(RotaryTables.of(HEAD_DIM, 64, torch.device("cpu")), *FRAME)
CODEC = build_codec(QvgSpec(num_centroids=4))


def test_it_is_the_mean_over_the_places_that_a_key_is_read_from():
    errors, generator = LogitErrors(), torch.Generator().manual_seed(0)
    errors.begin(CHUNKS[1])
    query, key = (torch.randn(1, 1, TOKENS, HEAD_DIM, generator=generator) for _ in range(2))
    errors.observe(query, [ROTATION.placement((1,))], seed=0)
    packed = CODEC.encode(key, seed=0)
    errors.add(key, CODEC, packed)
    error = key - CODEC.decode(packed)
    # Every query as if at every place of a frame, against every key as if at every place of those before.
    place = lambda states, frame: torch.cat(  # noqa: E731
        [
            ROTATION.placement((frame,)).apply(states[:, :, [number] * TOKENS], slice(0, TOKENS))[0, 0]
            for number in range(TOKENS)
        ]
    )
    asked = place(query, FRAMES)
    squares = [(asked @ place(error, frame).T).square().mean() / HEAD_DIM for frame in range(FRAMES)]
    assert torch.stack(errors.squared).item() == pytest.approx(torch.stack(squares).mean().item(), rel=1e-3)


def run(spec):
    """What the sample of each chunk says of a run of one layer."""
    plan = VideoPlan(chunks=CHUNKS, tokens_per_frame=TOKENS, latent_shape=(16, 4, 6), height=32, width=48)
    config = CacheConfig(preset="test", k=spec, v=spec)
    cache = open_cache(config, plan, CacheShape(1, 2, HEAD_DIM), seed=1)
    generator, samples = torch.Generator().manual_seed(0), []
    for chunk in CHUNKS:
        commit = cache.begin(chunk).commit
        query, key, value = (torch.randn(1, 2, TOKENS, HEAD_DIM, generator=generator) for _ in range(3))
        cache.layers[0].observe(query, chunk.makes, ROTATION)
        cache.layers[0].commit(key, value, chunk.makes, commit)
        samples.append(cache.sample(chunk, None).logit_rms)
    return samples


def test_every_fourth_chunk_of_a_packed_run_says_it():
    first, second, third = run(QvgSpec(num_centroids=4))
    assert (first, third) == ({}, {})
    assert len(second) == 1
    assert second[0] > 0


def test_a_cache_that_packs_nothing_predicts_nothing():
    assert run(Bf16Spec()) == [{}, {}, {}]
    assert predicted_rms([LogitErrors()]) == {}


def test_earlier_records_list_the_errors_of_all_layers():
    assert by_layer([0.1, 0.2]) == by_layer({"0": 0.1, "1": 0.2}) == {0: 0.1, 1: 0.2}
