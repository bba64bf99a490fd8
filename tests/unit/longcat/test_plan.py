"""The base clip and its segments, in absolute latent frames, and lengths that do not fit."""

import subprocess
import sys

import pytest

from qvg_cli.config.load import Request
from qvg_cli.errors import UsageError
from qvg_cli.models.longcat.plan import plan_chunks, plan_video
from qvg_cli.models.registry import load_config
from qvg_cli.planning.chunks import pixel_frames


def plan(num_frames, context_frames=0):
    return plan_chunks(num_frames, window=24, condition_frames=19, context_frames=context_frames)


def span(start, stop):
    return tuple(range(start, stop))


def test_base_clip_reads_and_leaves_nothing():
    (chunk,) = plan(24)
    assert chunk.makes == span(0, 24)
    assert chunk.prefill == chunk.reads == chunk.kept == chunk.evicts == ()


def test_each_segment_goes_on_from_the_newest_frames():
    base, first, second = plan(34)
    assert base.makes == span(0, 24)
    assert (first.prefill, first.makes, first.evicts) == (span(5, 24), span(24, 29), ())
    assert (second.prefill, second.makes, second.evicts) == (span(10, 29), span(29, 34), span(5, 24))
    for chunk in (first, second):
        assert chunk.reads == chunk.prefill
        assert (chunk.prefill_commits, chunk.commits) == ((chunk.prefill,), ())


def test_a_segment_adds_twenty_pixel_frames():
    assert pixel_frames(24) == 93
    assert pixel_frames(29) == 113


def test_an_image_is_the_first_frame_of_the_base_clip():
    base, segment = plan(29, context_frames=1)
    assert (base.prefill, base.makes) == ((0,), span(1, 24))
    assert (segment.prefill, segment.makes, segment.evicts) == (span(5, 24), span(24, 29), (0,))


def test_a_given_clip_is_gone_on_from():
    (chunk,) = plan(24, context_frames=19)
    assert (chunk.prefill, chunk.makes) == (span(0, 19), span(19, 24))


@pytest.mark.parametrize(
    ("num_frames", "context_frames", "message"),
    [
        (
            26,
            0,
            r"^26 latent frames \(101 pixel frames\) .* nearest: 24 latent frames .*, 29 latent frames \(113",
        ),
        (20, 0, r"nearest: 24 latent frames \(93 pixel frames\)$"),
        (30, 19, r"a start of 19 and segments of 5; nearest: 29 latent frames .*, 34 latent"),
        (29, 18, r"^18 latent frames \(69 pixel frames\) are given; .* exactly 19 latent frames \(73 pixel"),
    ],
)
def test_lengths_that_do_not_fit_name_the_nearest(num_frames, context_frames, message):
    with pytest.raises(UsageError, match=message):
        plan(num_frames, context_frames)


def test_planning_needs_no_torch():
    code = "import qvg_cli.models.longcat.plan, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(("preset", "mib"), [("bf16", 22230.00), ("int2-qvg", 3231.26)])
def test_cache_of_the_published_model_in_mib(preset, mib):
    config = load_config(Request(backend="longcat", sets=(f"cache.preset={preset}",))).config
    tokens = config.sampler.condition_frames * plan_video(config).tokens_per_frame
    assert tokens == 29640
    layer = [codec.payload_bytes(32, tokens, 128) for codec in (config.cache.k, config.cache.v)]
    held = 48 * sum(sum(payload.values()) for payload in layer) / 2**20
    assert round(held, 2) == mib


def test_default_cache_is_seven_times_smaller_than_bf16():
    cache = load_config(Request(backend="longcat")).config.cache
    bits = [codec.bits_per_value(29640, 128) for codec in (cache.k, cache.v)]
    assert 16 / (sum(bits) / 2) >= 7
