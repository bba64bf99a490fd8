"""Which codec is better, on a small structured span: the order that docs/results.md shows at full size."""

import itertools

import pytest
import torch

from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.spec import FittedSpec, QvgSpec

from .conftest import preset_specs


@pytest.fixture(scope="module")
def sample():
    from synthetic import make_sample

    return make_sample("mid", 4, heads=1, frame=(16, 24), num_queries=64)


@pytest.fixture(scope="module")
def errors(sample):
    """Key error, value error and attention errors of a preset, in dB."""
    from measures import AttentionProbe, error_db, rope_3d

    rotation = rope_3d(sample.grid, 128)
    probe = AttentionProbe(sample.query, sample.key, sample.value, rotation, rotation[sample.query_tokens])

    def measure(key_spec, value_spec):
        key_codec, value_codec = build_codec(key_spec), build_codec(value_spec)
        key = key_codec.decode(key_codec.encode(sample.key, seed=0))
        value = value_codec.decode(value_codec.encode(sample.value, seed=1))
        losses = [probe.losses(key, value, probe.scale_of(sharpness))[0] for sharpness in (8.0, 3.0)]
        attention = [one.attention_db for one in losses]
        return error_db(key, sample.key), error_db(value, sample.value), *attention

    return measure


def test_the_default_beats_the_paper_at_equal_bits(errors):
    # A table as large as the default's in bytes.
    paper = QvgSpec(num_centroids=16)
    ours = preset_specs("int2")
    assert ours[0].bits_per_value(1536, 128) < paper.bits_per_value(1536, 128)
    gains = [theirs - mine for theirs, mine in zip(errors(paper, paper), errors(*ours), strict=True)]
    assert gains[0] >= 5
    assert gains[1] >= 4
    assert min(gains[2:]) >= 7


@pytest.mark.parametrize(("preset", "fewer_bits"), [("trit", 0.35), ("bit1", 0.95)])
def test_fewer_bits_beat_the_papers_two(errors, preset, fewer_bits):
    paper = QvgSpec(num_centroids=16)
    ours = preset_specs(preset)
    assert ours[0].bits_per_value(1536, 128) < paper.bits_per_value(1536, 128) - fewer_bits
    assert all(mine < theirs for mine, theirs in zip(errors(*ours), errors(paper, paper), strict=True))


def test_more_bits_lose_less(errors):
    order = [errors(*preset_specs(name)) for name in ("bit1", "trit", "int2-scalar", "int2", "int3", "int4")]
    for worse, better in itertools.pairwise(order):
        assert all(high > low for high, low in zip(worse, better, strict=True))


@pytest.mark.parametrize("peer", ["rtn-int2", "kivi-int2", "quarot-int2", "turboquant-int2"])
def test_the_default_beats_every_peer(errors, peer):
    ours, theirs = errors(*preset_specs("int2")), errors(*preset_specs(peer))
    assert all(mine < other for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("grid", ["e8x1", "trit", "int2", "e8", "int3"])
def test_an_unbiased_scale_does_not_shrink_what_is_stored(sample, grid):
    from measures import gain

    codec = build_codec(FittedSpec(grid=grid, unbiased=1.0))
    assert gain(codec.decode(codec.encode(sample.value, seed=0)), sample.value) == pytest.approx(1, abs=0.01)


def test_tokens_of_one_cluster_err_by_zero_on_average(sample):
    codec = build_codec(FittedSpec())
    packed = codec.encode(sample.value, seed=0)
    error = (codec.decode(packed) - sample.value)[0, 0]
    ids = packed.tensors["ids"][0, 0].long()
    for cluster in range(4):
        mean = error[ids == cluster].mean(0)
        assert mean.norm() < 0.05 * error[ids == cluster].norm(dim=-1).mean()
    assert error.mean(0).norm() < 1e-4 * error.norm(dim=-1).mean()


def test_measures_see_nothing_where_nothing_is_lost(sample, errors):
    bf16 = preset_specs("bf16")[0]
    assert max(errors(bf16, bf16)) < -45
    none = preset_specs("none")[0]
    assert max(errors(none, none)) < -100


@pytest.mark.parametrize(
    ("level", "low", "high"), [("low", 0.4, 0.7), ("mid", 0.15, 0.35), ("high", 0.05, 0.15)]
)
def test_the_generator_makes_the_redundancy_it_says(level, low, high):
    from synthetic import make_sample

    from qvg_kernels.quant.kmeans import kmeans, spread_starts

    value = make_sample(level, 6, heads=1).value[0, 0]
    ids, centroids = kmeans(value, value[spread_starts(len(value), 256, torch.device("cpu"))], 4)
    left = (value - centroids[ids]).square().sum() / value.square().sum()
    assert low < left < high
