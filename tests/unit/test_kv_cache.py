"""The layered cache: what it holds, what it reads, and that the account is exact."""

from dataclasses import dataclass

import pytest
import torch

from qvg_cli.cache.kv_cache import KVCache, open_cache
from qvg_cli.config.schema import CacheConfig, LayerCodecs
from qvg_cli.errors import QvgError
from qvg_cli.models.self_forcing.config import BlockSamplerConfig
from qvg_cli.models.self_forcing.plan import plan_chunks
from qvg_cli.planning.cache_forecast import CacheShape, predict_payload
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
from qvg_cli.planning.ledger import add, total
from qvg_kernels.codec import FiniteCheck
from qvg_kernels.spec import Bf16Spec, CodecSpec, FittedSpec, NoneSpec, QuantWmSpec, QvgSpec

HEADS, TOKENS, HEAD_DIM, LAYERS = 2, 24, 64, 2
QVG = QvgSpec(num_centroids=16)


@dataclass(frozen=True)
class ByFrame:
    """A rotation that can be undone by eye: adds the frame's id to the keys."""

    frames: tuple[int, ...] = ()

    def placement(self, frames):
        return ByFrame(frames)

    def apply(self, keys, tokens):
        frames = torch.tensor(self.frames, dtype=keys.dtype)
        return keys + frames[torch.arange(tokens.start, tokens.stop) // TOKENS, None]


def video_plan(num_frames=12, **changes) -> VideoPlan:
    settings = {"steps": (1000,), "shift": 5.0, "frames_per_chunk": 3, **changes}
    chunks = plan_chunks(num_frames, BlockSamplerConfig(**settings))
    return VideoPlan(chunks=chunks, tokens_per_frame=TOKENS, latent_shape=(16, 8, 12), height=64, width=96)


def empty_cache(plan: VideoPlan, spec: CodecSpec, **changes) -> KVCache:
    config = CacheConfig(preset="test", k=spec, v=spec, **changes)
    return open_cache(config, plan, CacheShape(LAYERS, HEADS, HEAD_DIM), seed=1)


def keys_of(frames, generator=None) -> torch.Tensor:
    generator = generator or torch.Generator().manual_seed(frames[0])
    return torch.randn(1, HEADS, TOKENS * len(frames), HEAD_DIM, generator=generator)


def run(plan: VideoPlan, cache: KVCache) -> None:
    for chunk in plan.chunks:
        make(chunk, cache)


def make(chunk: ChunkPlan, cache: KVCache) -> None:
    """Commit what `chunk` commits, without a model."""
    step = cache.begin(chunk)
    for frames, commit in ((chunk.prefill, step.prefill), (chunk.makes, step.commit)):
        if commit is not None:
            for layer in cache.layers:
                layer.commit(keys_of(frames), -keys_of(frames), frames, commit)
            cache.settle(commit)


def held_by_tensors(cache: KVCache) -> dict[str, int]:
    held: dict[str, int] = {}
    for layer in cache.layers:
        for entry in layer.entries.values():
            for packed in (entry.key, entry.value):
                for name, tensor in packed.tensors.items():
                    held = add(held, {packed.kinds[name]: tensor.untyped_storage().nbytes()})
    return held


@pytest.mark.parametrize("spec", [NoneSpec(), Bf16Spec(), QVG], ids=lambda spec: spec.scheme)
@pytest.mark.parametrize(
    "settings", [{}, {"span_tokens": 2 * 3 * TOKENS}, {"keep_recent_chunks": 1}, {"keep_sink": True}]
)
@pytest.mark.parametrize("window", [None, 8])
def test_the_account_is_the_sum_of_the_storages(spec, settings, window):
    plan = video_plan(window=window)
    cache = empty_cache(plan, spec, **settings)
    run(plan, cache)
    assert cache.payload_bytes() == held_by_tensors(cache)


def test_each_layer_is_packed_by_its_own_codecs():
    plan, trit = video_plan(), FittedSpec(grid="trit")
    cache = empty_cache(plan, FittedSpec(), layers={1: LayerCodecs(k=QVG, v=trit)})
    run(plan, cache)
    specs = [
        {(entry.codecs.key.spec, entry.codecs.value.spec) for entry in layer.entries.values()}
        for layer in cache.layers
    ]
    assert specs == [{(FittedSpec(), FittedSpec())}, {(QVG, trit)}]
    assert cache.payload_bytes() == held_by_tensors(cache)


def test_keys_are_packed_by_the_queries_of_earlier_chunks_alone():
    plan, spec = video_plan(), QuantWmSpec(num_centroids=16, rank=1)
    cache = empty_cache(plan, Bf16Spec(), layers={1: LayerCodecs(k=spec, v=Bf16Spec())})
    layer = cache.layers[1]
    for chunk, channel in zip(plan.chunks[:3], (5, 9, 9), strict=True):
        commit = cache.begin(chunk).commit
        query = torch.zeros(1, HEADS, TOKENS * 3, HEAD_DIM)
        query[..., channel] = 1 + chunk.index
        layer.shaping.observe(query, ())
        layer.commit(keys_of(chunk.makes), -keys_of(chunk.makes), chunk.makes, commit)
    directions = [entry.key.tensors["directions"][0, 0, :, 0].float() for entry in layer.entries.values()]
    assert not directions[0].any()
    assert [direction.abs().argmax().item() for direction in directions[1:]] == [5, 9]
    assert cache.payload_bytes() == held_by_tensors(cache)


def test_bf16_reference_is_the_size_of_a_bf16_cache_of_the_same_frames():
    plan = video_plan()
    cache = empty_cache(plan, Bf16Spec())
    run(plan, cache)
    assert cache.bf16_bytes == total(cache.payload_bytes()) == cache.payload_bytes()["bf16"]


def test_layers_hold_what_the_last_chunk_read():
    plan = video_plan(21, window=8, sink=2)
    cache = empty_cache(plan, NoneSpec())
    run(plan, cache)
    for layer in cache.layers:
        assert set(plan.chunks[-1].reads) <= set(layer.entry_of)


@pytest.mark.parametrize("reads", [(0, 1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 7), (0, 8), ()])
@pytest.mark.parametrize("settings", [{}, {"span_tokens": 3 * 3 * TOKENS}])
def test_attention_reads_the_wanted_frames_at_their_positions(reads, settings):
    plan = video_plan()
    cache = empty_cache(plan, NoneSpec(), **settings)
    run(plan, cache)
    own = (9, 10, 11)
    generator = torch.Generator().manual_seed(5)
    query, key, value = (keys_of(own, generator) for _ in range(3))
    found = cache.layers[1].attend(query, key, value, frames=own, reads=reads, rotation=ByFrame())

    history = torch.cat([keys_of((f, f + 1, f + 2)) for f in (0, 3, 6)], dim=2).unflatten(2, (9, TOKENS))
    kept = history[:, :, list(reads)]
    rotated = kept + torch.tensor(reads, dtype=kept.dtype).view(-1, 1, 1)
    keys = torch.cat([rotated.flatten(2, 3), ByFrame(own).apply(key, slice(0, key.shape[2]))], dim=2)
    values = torch.cat([-kept.flatten(2, 3), value], dim=2)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_attending_changes_nothing():
    plan = video_plan()
    cache = empty_cache(plan, QVG)
    run(plan, cache)
    own = (9, 10, 11)
    query = keys_of(own)
    attend = lambda: cache.layers[0].attend(  # noqa: E731
        query, query, query, frames=own, reads=plan.chunks[-1].reads, rotation=ByFrame()
    )
    before = cache.payload_bytes()
    first = attend().clone()
    assert torch.equal(first, attend())
    assert cache.payload_bytes() == before


def test_a_value_that_is_not_a_number_is_refused_with_its_place():
    plan = video_plan()
    cache = empty_cache(plan, QVG)
    keys = keys_of((0, 1, 2))
    keys[0, 1, TOKENS + 5, 7] = float("nan")
    step = cache.begin(plan.chunks[0])
    with pytest.raises(QvgError, match=r"layer 1, latent frame 1: .*head 1"):
        cache.layers[1].commit(keys, keys, (0, 1, 2), step.commit)


def test_a_check_that_was_put_off_is_settled_when_the_chunk_is_committed():
    plan = video_plan()
    cache = empty_cache(plan, QVG)
    commit = cache.begin(plan.chunks[0]).commit
    keys = keys_of((0, 1, 2))
    cache.layers[0].unsettled.append(((0, 1, 2), FiniteCheck.of(keys)))
    keys[0, 1, TOKENS + 5, 7] = float("inf")
    cache.layers[1].unsettled.append(((0, 1, 2), FiniteCheck.of(keys)))
    with pytest.raises(QvgError, match=r"layer 1, latent frame 1: .*holds 1 NaN .*head 1"):
        cache.settle(commit)
    cache.settle(commit)


def test_the_peak_is_the_fullest_moment_of_a_chunk():
    plan = video_plan()
    cache = empty_cache(plan, QVG, span_tokens=2 * 3 * TOKENS)
    dense = 2 * HEADS * 3 * TOKENS * HEAD_DIM * 2
    first, second = plan.chunks[:2]
    for chunk in (first, second):
        make(chunk, cache)
    # The second chunk is stored beside the first one layer at a time, and both are packed before the next
    # layer.
    assert cache.ledger.peak["bf16"] == dense * LAYERS + dense
    assert "bf16" not in cache.ledger.held


def test_reading_a_frame_that_is_not_held_is_an_error():
    plan = video_plan()
    cache = empty_cache(plan, NoneSpec())
    run(plan, cache)
    own = (9, 10, 11)
    query = keys_of(own)
    with pytest.raises(QvgError, match=r"latent frame 12 is not in the cache of layer 0, which holds \[0, 1"):
        cache.layers[0].attend(query, query, query, frames=own, reads=(0, 12), rotation=ByFrame())


def test_an_evicted_frame_is_not_read_from_a_block_that_others_keep_alive():
    cache = empty_cache(video_plan(), NoneSpec(), span_tokens=2 * 3 * TOKENS)
    make(ChunkPlan(0, (0, 1, 2), commits=(0, 1, 2)), cache)
    make(ChunkPlan(1, (3, 4, 5), reads=(0, 1, 2), commits=(3, 4, 5)), cache)
    cache.begin(ChunkPlan(2, (6, 7, 8), reads=(3, 4, 5), evicts=(0, 1, 2)))
    query = keys_of((6, 7, 8))
    with pytest.raises(QvgError, match="latent frame 2 is not in the cache"):
        cache.layers[0].attend(query, query, query, frames=(6, 7, 8), reads=(2, 3), rotation=ByFrame())


RECACHED = (
    ChunkPlan(0, (0, 1, 2), commits=(0, 1, 2)),
    ChunkPlan(1, (3, 4, 5), reads=(0, 1, 2), commits=(3, 4, 5)),
    ChunkPlan(2, (), prefill=(3, 4, 5), reads=(0, 1, 2), prefill_commits=((3, 4, 5),), evicts=(3, 4, 5)),
    ChunkPlan(3, (6, 7, 8), reads=(0, 1, 2, 3, 4, 5), commits=(6, 7, 8)),
    ChunkPlan(4, (9, 10, 11), reads=(3, 4, 5, 6, 7, 8), evicts=(0, 1, 2)),
)
"""Frames 3 to 5 pass through the model a second time, as when the prompt changes."""


@pytest.mark.parametrize("spec", [NoneSpec(), Bf16Spec(), QVG], ids=lambda spec: spec.scheme)
@pytest.mark.parametrize("settings", [{}, {"span_tokens": 2 * 3 * TOKENS}])
def test_frames_committed_again_are_read_once_and_counted_once(spec, settings):
    plan = VideoPlan(chunks=RECACHED, tokens_per_frame=TOKENS, latent_shape=(16, 8, 12), height=64, width=96)
    cache = empty_cache(plan, spec, **settings)
    samples = []
    for chunk in RECACHED:
        make(chunk, cache)
        samples.append(cache.sample(chunk, None))
        assert set(chunk.reads) <= set(cache.layers[0].entry_of)
    assert cache.payload_bytes() == held_by_tensors(cache)
    assert cache.bf16_bytes == 2 * 2 * 2 * HEADS * HEAD_DIM * TOKENS * 6
    assert (
        predict_payload(
            CacheConfig(preset="test", k=spec, v=spec, **settings),
            plan,
            CacheShape(LAYERS, HEADS, HEAD_DIM, 4),
        )
        == samples
    )
