"""Which blocks are dropped, stored and packed at each chunk, as tables of frame ids."""

import pytest

from qvg_cli.models.self_forcing.config import BlockSamplerConfig
from qvg_cli.models.self_forcing.plan import plan_chunks
from qvg_cli.planning.cache_plan import Block, CachePlan
from qvg_cli.planning.chunks import ChunkPlan


def chunks(frames=18, **changes):
    settings = {"steps": (1000, 500), "shift": 5.0, "frames_per_chunk": 3, **changes}
    return plan_chunks(frames, BlockSamplerConfig(**settings))


def packed_at_each_chunk(chunks, policy):
    """The frames of the blocks that become packed once a chunk is committed."""
    plan, packed = CachePlan(**policy), []
    for chunk in chunks:
        commit = plan.advance(chunk).commit
        stored = [block.frames for block in commit.stores if block.is_packed] if commit else []
        grouped = [packing.block.frames for packing in commit.packings] if commit else []
        packed.append(tuple(stored + grouped))
    return packed


A, B, C, D, E = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11), (12, 13, 14))


@pytest.mark.parametrize(
    ("policy", "packs"),
    [
        ({}, [(A,), (B,), (C,), (D,), (E,), ()]),
        ({"block_frames": 6}, [(), (A + B,), (), (C + D,), (), ()]),
        ({"block_frames": 4}, [(), (A + B,), (), (C + D,), (), ()]),
        ({"keep_recent_chunks": 1}, [(), (A,), (B,), (C,), (D,), ()]),
        ({"keep_sink": True}, [(), (B,), (C,), (D,), (E,), ()]),
        ({"block_frames": 6, "sink_frames": 3}, [(), (A,), (B + C,), (), (D + E,), ()]),
    ],
)
def test_growing_window(policy, packs):
    assert packed_at_each_chunk(chunks(), policy) == packs


def test_chunks_that_leave_a_window_before_their_block_is_full_are_never_packed():
    packs = packed_at_each_chunk(chunks(window=6, sink=0), {"block_frames": 9})
    assert packs == [()] * 6


def test_every_frame_is_packed_at_most_once():
    policy = {"block_frames": 6, "sink_frames": 3}
    packed = [
        frame
        for groups in packed_at_each_chunk(chunks(90, window=12, sink=3), policy)
        for group in groups
        for frame in group
    ]
    assert len(packed) == len(set(packed))


@pytest.mark.parametrize("policy", [{}, {"block_frames": 6}, {"keep_sink": True}])
@pytest.mark.parametrize(("window", "sink"), [(None, 0), (8, 2), (12, 5), (6, 0)])
def test_what_a_chunk_reads_is_held(policy, window, sink):
    plan = CachePlan(**policy)
    for chunk in chunks(60, window=window, sink=sink):
        plan.advance(chunk)
        assert set(chunk.reads) <= set(plan.block_of)
        assert {frame for block in plan.blocks for frame in block.frames} >= set(plan.block_of)


def test_a_block_stays_until_the_last_of_its_frames_goes():
    plan = CachePlan(block_frames=6)
    plan.advance(ChunkPlan(0, A, commits=A))
    plan.advance(ChunkPlan(1, B, reads=A, commits=B))
    (block,) = plan.blocks
    assert plan.advance(ChunkPlan(2, C, reads=B, evicts=A)).drops == ()
    assert plan.blocks == [block]
    assert plan.advance(ChunkPlan(3, D, evicts=B)).drops == (block,)
    assert plan.blocks == []


def test_frames_that_were_evicted_can_be_committed_again():
    """As at a change of the prompt: the newest frames pass again, and an old block is left to the sink."""
    plan = CachePlan(block_frames=6)
    plan.advance(ChunkPlan(0, A, commits=A))
    plan.advance(ChunkPlan(1, B, reads=A, commits=B))
    (old,) = plan.blocks
    step = plan.advance(ChunkPlan(2, (), prefill=B, reads=A, prefill_commits=(B,), evicts=B))
    assert step.evicts == B
    assert step.drops == ()
    new = Block(B, False, 2)
    assert plan.blocks == [old, new]
    assert [plan.block_of[frame] for frame in (2, 3)] == [old, new]
    # The next chunk evicts nothing: what was committed again stays.
    plan.advance(ChunkPlan(3, C, reads=A + B, commits=C))
    assert set(plan.block_of) == set(A + B + C)


def test_what_stays_after_the_next_chunk_is_known_without_it():
    plan = CachePlan()
    for chunk in chunks(window=6)[:3]:
        plan.advance(chunk)
    before = tuple(plan.blocks)
    following = chunks(window=6)[3]
    kept = plan.blocks_after(following.evicts)
    assert set(kept) < set(before)
    assert tuple(plan.blocks) == before
    assert kept == tuple(block for block in before if not set(block.frames) <= set(following.evicts))
