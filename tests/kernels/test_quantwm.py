"""QuantWM, the peer that knows the queries: its bits, its choice of centroids, its correction of keys."""

import pytest
import torch

from qvg_kernels.codec import Shaper
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.quant.kmeans import kmeans
from qvg_kernels.spec import QuantWmSpec

from .conftest import preset_specs
from .histories import make_span

TOKENS, HEAD_DIM = 200, 64
KEYS = QuantWmSpec(num_centroids=16, candidates=4, rank=4)


def queries():
    """Queries that point along few directions."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(3, HEAD_DIM, generator=generator)
    noise = 0.05 * torch.randn(300, HEAD_DIM, generator=generator)
    return torch.randn(300, 3, generator=generator) @ directions + noise


def decoded(spec, moment):
    """Keys, what they decode to, and what is stored, of one head."""
    codec, span = build_codec(spec), make_span(1, 1, TOKENS, HEAD_DIM)
    shaper = None if moment is None else Shaper(moment)
    packed = codec.encode(span, seed=3, shaper=shaper)
    return span[0, 0], codec.decode(packed)[0, 0], {name: kept[0, 0] for name, kept in packed.tensors.items()}


def moment_of(query):
    return (query.T @ query)[None, None]


def logit_error(key, found, query):
    return ((found - key) @ query.T).square().mean()


@pytest.mark.parametrize(
    ("tokens", "head_dim", "ratio"), [pytest.param(29_640, 128, 5.99, id="LongCat, table 1")]
)
def test_the_papers_ratio_follows(tokens, head_dim, ratio):
    bits = sum(spec.bits_per_value(tokens, head_dim) for spec in preset_specs("quantwm-int2")) / 2
    assert round(16 / bits, 2) == ratio


def test_a_correction_brings_the_logits_of_such_queries_nearer():
    query = queries()
    key, plain, _ = decoded(KEYS, None)
    _, found, stored = decoded(KEYS, moment_of(query))
    assert logit_error(key, found, query) < 0.2 * logit_error(key, plain, query)
    assert stored["corrections"].abs().amax() == 127


def test_the_first_chunk_has_no_correction():
    _, _, stored = decoded(KEYS, None)
    assert not stored["corrections"].any()
    assert not stored["directions"].any()


def test_the_scale_of_the_moment_has_no_effect():
    _, found, _ = decoded(KEYS, moment_of(queries()))
    _, larger, _ = decoded(KEYS, 64 * moment_of(queries()))
    assert torch.equal(found, larger)


def test_a_key_takes_the_candidate_whose_residual_has_the_least_weighted_ranges():
    query = queries()
    key, _, stored = decoded(QuantWmSpec(block_size=32, num_centroids=16, candidates=4), moment_of(query))
    weight = query.square().sum(0) / query.square().sum(0).mean()
    table = stored["centroids"].float()
    for token in range(0, TOKENS, 10):
        distances = (weight * (key[token] - table).square()).sum(-1)
        costs = {}
        for candidate in distances.argsort()[:4].tolist():
            groups = (key[token] - table[candidate]).reshape(2, 32)
            ranges = groups.amax(-1) - groups.amin(-1)
            costs[candidate] = float((weight.reshape(2, 32).sum(-1) * ranges.square()).sum())
        assert costs[int(stored["ids"][token])] == pytest.approx(min(costs.values()), rel=1e-4)


def test_values_take_the_nearest_centroid_as_the_base_does():
    codec, span = build_codec(QuantWmSpec(num_centroids=16)), make_span(1, 1, TOKENS, HEAD_DIM)
    starts = codec.draw(TOKENS, HEAD_DIM, 3, span.device)
    ids, _ = kmeans(span[0, 0], span[0, 0][starts], 2)
    assert torch.equal(codec.encode(span, seed=3).tensors["ids"][0, 0].long(), ids)


def test_values_of_a_group_err_by_its_step_at_most():
    key, found, stored = decoded(QuantWmSpec(num_centroids=16), None)
    step = stored["scales"].float() * stored["unit"].float()
    assert ((found - key).abs() <= 1.01 * step).all()
