"""The base clip and its segments, in absolute latent frames, and lengths that do not fit."""

import pytest

from qvg_cli.backends.longcat.plan import plan_chunks
from qvg_cli.errors import UsageError
from qvg_cli.plan import pixel_frames


def plan(num_frames, context_frames=0):
    return plan_chunks(num_frames, window=24, condition_frames=19, context_frames=context_frames)


def span(start, stop):
    return tuple(range(start, stop))


def test_base_clip_reads_and_leaves_nothing():
    (chunk,) = plan(24)
    assert chunk.makes == span(0, 24)
    assert chunk.prefill == chunk.reads == chunk.commits == chunk.evicts == ()


def test_each_segment_goes_on_from_the_newest_frames():
    base, first, second = plan(34)
    assert base.makes == span(0, 24)
    assert (first.prefill, first.makes, first.evicts) == (span(5, 24), span(24, 29), ())
    assert (second.prefill, second.makes, second.evicts) == (span(10, 29), span(29, 34), span(5, 24))
    for chunk in (first, second):
        assert chunk.reads == chunk.commits == chunk.prefill


def test_a_segment_adds_twenty_pixel_frames():
    assert pixel_frames(24) == 93
    assert pixel_frames(29) == 113


def test_an_image_is_the_first_frame_of_the_base_clip():
    base, segment = plan(29, context_frames=1)
    assert (base.prefill, base.makes) == ((0,), span(1, 24))
    assert (segment.prefill, segment.makes, segment.evicts) == (span(5, 24), span(24, 29), (0,))


@pytest.mark.parametrize("context_frames", [19, 24, 40])
def test_a_given_clip_is_gone_on_from(context_frames):
    (chunk,) = plan(context_frames + 5, context_frames)
    assert chunk.prefill == span(context_frames - 19, context_frames)
    assert chunk.makes == span(context_frames, context_frames + 5)


@pytest.mark.parametrize(
    ("num_frames", "context_frames", "message"),
    [
        (26, 0, r"26 latent frames \(101 pixel frames\) .* nearest: 24 \(93 pixel frames\), 29 \(113 pix"),
        (20, 0, r"nearest: 24 \(93 pixel frames\)$"),
        (30, 24, r"a start of 24 and segments of 5; nearest: 29 \(113 pixel frames\), 34"),
        (29, 18, r"the given clip has 69 frames, a segment goes on from 73; nearest: 73"),
    ],
)
def test_lengths_that_do_not_fit_name_the_nearest(num_frames, context_frames, message):
    with pytest.raises(UsageError, match=message):
        plan(num_frames, context_frames)
