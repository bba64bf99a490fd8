"""Plans of the Self-Forcing family, as tables of frame ids."""

import pytest

from qvg_cli.config.schema import CacheConfig, VideoConfig
from qvg_cli.errors import UsageError
from qvg_cli.models.self_forcing.config import BlockSamplerConfig, CheckpointModelConfig, SelfForcingConfig
from qvg_cli.models.self_forcing.plan import plan_chunks, plan_video
from qvg_cli.planning.chunks import pixel_frames
from qvg_kernels.spec import NoneSpec


def sampler(**changes) -> BlockSamplerConfig:
    return BlockSamplerConfig(
        **{"steps": (1000, 750, 500, 250), "shift": 5.0, "frames_per_chunk": 3, **changes}
    )


def test_whole_history_is_read_and_the_last_chunk_is_not_kept():
    chunks = plan_chunks(9, sampler())
    assert [chunk.makes for chunk in chunks] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    assert [chunk.reads for chunk in chunks] == [(), (0, 1, 2), (0, 1, 2, 3, 4, 5)]
    assert [chunk.commits for chunk in chunks] == [(0, 1, 2), (3, 4, 5), ()]


@pytest.mark.parametrize(
    ("window", "sink", "reads"),
    [
        (6, 0, [(), (0, 1, 2), (3, 4, 5), (6, 7, 8)]),
        (6, 1, [(), (0, 1, 2), (0, 4, 5), (0, 7, 8)]),
        (7, 3, [(), (0, 1, 2), (0, 1, 2, 5), (0, 1, 2, 8)]),
        (5, 0, [(), (1, 2), (4, 5), (7, 8)]),
    ],
)
def test_rolling_window_keeps_the_sink_and_the_newest_frames(window, sink, reads):
    chunks = plan_chunks(12, sampler(window=window, sink=sink))
    assert [chunk.reads for chunk in chunks] == reads


def test_every_frame_is_evicted_at_most_once_and_never_read_again():
    gone: set[int] = set()
    for chunk in plan_chunks(60, sampler(window=8, sink=2)):
        assert gone.isdisjoint(chunk.evicts)
        gone |= set(chunk.evicts)
        assert gone.isdisjoint(chunk.reads)


@pytest.mark.parametrize(
    ("context", "prefills"),
    [(3, [(0, 1, 2)]), (1, [(0,)]), (7, [(0,), (1, 2, 3), (4, 5, 6)])],
)
def test_given_frames_pass_through_in_blocks(context, prefills):
    chunks = plan_chunks(context + 6, sampler(), context_frames=context)
    assert [chunk.prefill for chunk in chunks if chunk.prefill] == prefills
    assert sum(len(chunk.makes) for chunk in chunks) == 6


@pytest.mark.parametrize(
    ("frames", "changes", "context", "message"),
    [
        (
            20,
            {},
            0,
            r"20 latent frames \(77 pixel frames\) do not fit chunks of 3; nearest: 18 \(69 .*\), 21 \(81",
        ),
        (
            1027,
            {},
            0,
            r"1027 latent frames exceed the model's 1024 positions; longest: 1023 latent frames \(4089",
        ),
        (
            21,
            {"window": 5, "sink": 3},
            0,
            "window 5 is too small for sink 3 and chunks of 3 frames; smallest: 6",
        ),
        (21, {}, 5, "5 given latent frames do not fit chunks of 3; nearest: 3, 4"),
        (
            1,
            {},
            0,
            r"1 latent frames \(1 pixel frames\) do not fit chunks of 3; nearest: 3 \(9 pixel frames\)",
        ),
    ],
)
def test_requests_that_do_not_fit_name_the_nearest_that_do(frames, changes, context, message):
    with pytest.raises(UsageError, match=message):
        plan_chunks(frames, sampler(**changes), context_frames=context)


def test_latent_frames_to_pixel_frames():
    assert [pixel_frames(n) for n in (0, 1, 3, 21, 180, 1023)] == [0, 1, 9, 81, 717, 4089]


def run_config(**cache) -> SelfForcingConfig:
    return SelfForcingConfig(
        backend="self-forcing",
        prompt="a ball",
        model=CheckpointModelConfig(name="tiny", weights="./tiny"),
        video=VideoConfig(height=128, width=224, frames=60),
        sampler=sampler(window=12, sink=3),
        cache=CacheConfig(preset="test", k=NoneSpec(), v=NoneSpec(), **cache),
    )


def test_spans_that_a_window_drops_before_they_are_full_are_refused():
    assert plan_video(run_config(span_tokens=9 * 112)).tokens_per_frame == 112
    with pytest.raises(UsageError, match="span_tokens=1009 is more than the 1008 tokens"):
        plan_video(run_config(span_tokens=9 * 112 + 1))
    with pytest.raises(UsageError, match="more than the 672 tokens"):
        plan_video(run_config(span_tokens=9 * 112, keep_recent_chunks=1))


def test_sizes_that_do_not_divide_name_the_nearest_that_do():
    config = run_config()
    odd = config.model_copy(update={"video": VideoConfig(height=100, width=224, frames=60)})
    with pytest.raises(UsageError, match="height 100 is not a multiple of 16; nearest: 96, 112"):
        plan_video(odd)
