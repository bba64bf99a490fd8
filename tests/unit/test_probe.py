"""What a probe measures of caches that pack the keys of another one."""

import pytest
import torch

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.cache.prediction import NUM_QUERIES, chosen_layers, is_measured
from qvg_cli.cache.probe import Probe, keys_alone
from qvg_cli.config.schema import CacheConfig
from qvg_cli.models.wan.rope import FrameRotation
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
from qvg_cli.randomness import derive_seed
from qvg_kernels.rope.tables import RotaryTables
from qvg_kernels.spec import Bf16Spec, FittedSpec, QuantWmSpec, QvgSpec

HEADS, TOKENS, HEAD_DIM, LAYERS = 8, 24, 64, 2
SHAPE = CacheShape(LAYERS, HEADS, HEAD_DIM)
CHUNKS = tuple(
    ChunkPlan(index, (index,), reads=tuple(range(index)), commits=(index,), is_first_made=index == 0)
    for index in range(6)
)
PLAN = VideoPlan(chunks=CHUNKS, tokens_per_frame=TOKENS, latent_shape=(16, 8, 12), height=64, width=96)
ROTATION = FrameRotation(RotaryTables.of(HEAD_DIM, 16, torch.device("cpu")), 4, 6)
EXACT, CODED = Bf16Spec(), QvgSpec(num_centroids=16)


def cache_of(spec, **settings):
    return CacheConfig(preset="test", k=spec, v=spec, **settings)


def measure(*configs, steps=1):
    """What is measured in every chunk of a run, the last query and key of each, and the packed caches."""
    cache = open_cache(cache_of(EXACT), PLAN, SHAPE, 1)
    others = {
        f"{number}": open_cache(keys_alone(config), PLAN, SHAPE, 1) for number, config in enumerate(configs)
    }
    probe = Probe(cache, others, seed=3)
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(1, HEADS, TOKENS, HEAD_DIM, generator=generator).bfloat16()  # noqa: E731
    found, states = [], []
    for chunk in CHUNKS:
        commit = cache.begin(chunk).commit
        probe.begin(chunk)
        for _ in range(steps):
            query, key = draw(), draw()
            for layer in cache.layers:
                asked = ROTATION.rotate(query, chunk.makes)
                layer.observe(query, chunk.makes, ROTATION)
                layer.attend(asked, key, key, frames=chunk.makes, reads=chunk.reads, rotation=ROTATION)
        found.append(probe.measure())
        for layer in cache.layers:
            layer.commit(key, key, chunk.makes, commit)
        probe.follow("commit")
        states.append((query, key))
    return found, states, others


def test_every_fourth_chunk_is_measured_from_the_first_that_has_a_history():
    found, _, _ = measure(cache_of(CODED))
    assert [bool(losses) for losses in found] == [False, True, False, False, False, True]
    assert [one.layer for one in found[5]["0"]] == [0, 1]


def test_measured_chunks_are_farther_apart_later():
    chunks = [ChunkPlan(index, (index,), reads=(), commits=()) for index in range(100)]
    measured = [chunk.index for chunk in chunks if is_measured(chunk)]
    assert measured == [1, 5, 9, 13, 17, 25, 33, 49, 65, 97]


def test_all_layers_are_looked_at_in_turn():
    looked_at = [tuple(chosen_layers(CHUNKS[index], 30)) for index in (1, 5)]
    assert looked_at == [tuple(range(0, 30, 5)), tuple(range(1, 30, 5))]
    assert chosen_layers(CHUNKS[2], 30) == ()


def test_a_cache_that_keeps_keys_exactly_loses_nothing():
    found, _, _ = measure(cache_of(EXACT))
    for losses in found[1]["0"] + found[5]["0"]:
        assert losses.logit_rms == losses.token_shift == losses.attention_moved == losses.history_mass == 0


def test_it_is_what_full_attention_of_the_drawn_queries_gives():
    found, states, others = measure(cache_of(CODED), steps=2)
    tokens = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(derive_seed(3, "probe", 5)))
    tokens = tokens[:NUM_QUERIES]
    # Four of the eight heads, in every second measured chunk the others.
    states = [tuple(each[:, 1::2] for each in pair) for pair in states]
    query, own = states[5]
    place = lambda key, frame: ROTATION.placement((frame,)).apply(key, slice(0, TOKENS)).float()  # noqa: E731
    asked = ROTATION.rotate(query, (5,))[:, :, tokens].float()
    scale = HEAD_DIM**-0.5
    exact = torch.cat([asked @ place(states[frame][1], frame).mT * scale for frame in range(5)], -1)
    entries = [others["0"].layers[0].entry_of[frame] for frame in range(5)]
    decoded = [entry.codecs.key.decode(entry.key)[:, 1::2] for entry in entries]
    coded = torch.cat([asked @ place(key, frame).mT * scale for frame, key in enumerate(decoded)], -1)
    chunk = asked @ place(own, 5).mT * scale
    (losses, _) = found[5]["0"]
    assert losses.logit_rms == pytest.approx((coded - exact).square().mean().sqrt().item(), rel=1e-4)
    shift = (coded.argmax(-1) != exact.argmax(-1)).float().mean().item()
    assert losses.token_shift == pytest.approx(shift, abs=1e-6)
    before, after = (torch.cat([logits, chunk], -1).softmax(-1) for logits in (exact, coded))
    assert losses.attention_moved == pytest.approx((after - before).abs().sum(-1).mean().item() / 2, rel=1e-3)
    history = exact.shape[-1]
    gained = (after - before)[..., :history].sum(-1).mean().item()
    assert losses.history_mass == pytest.approx(gained, abs=1e-6)


def test_chunks_that_wait_unpacked_lose_nothing():
    found, _, _ = measure(cache_of(CODED), cache_of(CODED, span_tokens=3 * TOKENS))
    assert set(found[1]) == {"0"}
    assert found[5]["0"][0].logit_rms != found[5]["1"][0].logit_rms > 0


def test_a_codec_that_weighs_queries_gets_those_of_the_run():
    _, states, others = measure(cache_of(QuantWmSpec(num_centroids=16, rank=1)))
    layer = others["0"].layers[1]
    queries = torch.cat([query for query, _ in states[:-1]], dim=2).float()
    torch.testing.assert_close(layer.shaping.earlier, queries.mT @ queries)
    has_directions = [bool(entry.key.tensors["directions"].any()) for entry in layer.entries.values()]
    assert has_directions == [False] + 5 * [True]


def test_what_a_cache_learns_from_queries_is_learnt_beside_the_run():
    plain, shaped = (FittedSpec(num_centroids=0, shaping=shaping) for shaping in ("none", "key"))
    found, _, others = measure(cache_of(plain), cache_of(shaped))
    assert not others["1"].is_learning
    assert found[5]["0"][0].logit_rms != found[5]["1"][0].logit_rms > 0
