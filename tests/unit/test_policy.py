"""When finished chunks become spans, as tables of frame ids."""

import pytest

from qvg_cli.models.self_forcing.config import BlockSamplerConfig
from qvg_cli.models.self_forcing.plan import plan_chunks
from qvg_cli.planning.cache_plan import PackPolicy, plan_packs


def chunks(frames=18, **changes):
    settings = {"steps": (1000, 500), "shift": 5.0, "frames_per_chunk": 3, **changes}
    return plan_chunks(frames, BlockSamplerConfig(**settings))


A, B, C, D, E = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11), (12, 13, 14))


@pytest.mark.parametrize(
    ("policy", "packs"),
    [
        (PackPolicy(), [(A,), (B,), (C,), (D,), (E,), ()]),
        (PackPolicy(span_frames=6), [(), (A + B,), (), (C + D,), (), ()]),
        (PackPolicy(span_frames=4), [(), (A + B,), (), (C + D,), (), ()]),
        (PackPolicy(keep_recent_chunks=1), [(), (A,), (B,), (C,), (D,), ()]),
        (PackPolicy(keep_sink=True), [(), (B,), (C,), (D,), (E,), ()]),
        (PackPolicy(span_frames=6, sink_frames=3), [(), (A,), (B + C,), (), (D + E,), ()]),
    ],
)
def test_growing_window(policy, packs):
    assert plan_packs(chunks(), policy) == packs


def test_chunks_that_leave_a_window_before_their_span_is_full_are_never_packed():
    packs = plan_packs(chunks(window=6, sink=0), PackPolicy(span_frames=9))
    assert packs == [()] * 6


def test_every_frame_is_packed_at_most_once():
    packed = [
        frame
        for groups in plan_packs(chunks(90, window=12, sink=3), PackPolicy(span_frames=6, sink_frames=3))
        for group in groups
        for frame in group
    ]
    assert len(packed) == len(set(packed))
