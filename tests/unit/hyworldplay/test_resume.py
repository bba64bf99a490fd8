"""A cut-off walk goes on with the same frames, however its history is kept."""

import pytest


@pytest.mark.parametrize(
    ("context", "preset"),
    [
        ("append", "none"),
        ("rebuild", "int2-qvg"),
        ("incremental", "int2-qvg"),
        pytest.param("append", "int2-qvg", marks=pytest.mark.slow),
        *(pytest.param(context, "none", marks=pytest.mark.slow) for context in ("rebuild", "incremental")),
    ],
)
def test_chunks_after_a_cut_are_the_same(walk_config, go_on, context, preset):
    sets = ("walk.pose=w-8,left-8", f"sampler.context={context}", f"cache.preset={preset}")
    whole, rest = go_on(walk_config(*sets, "walk.image=null", "video.frames=16"), 2)
    assert len(rest) == 2
    for one, other in zip(whole, rest, strict=True):
        assert one.latents.equal(other.latents)
        assert one.frames.equal(other.frames)
        assert one.memory == other.memory
