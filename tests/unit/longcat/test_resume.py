"""A cut-off run goes on with the same segments, whose condition comes from pixels that are decoded again."""

import pytest

from qvg_cli.config.load import Request
from qvg_cli.models.registry import load_config

SETS = (
    "video.height=32",
    "video.width=48",
    "video.frames=12",
    "sampler.window=6",
    "sampler.frames_per_chunk=2",
)
SETS += ("sampler.guided_steps=2", "sampler.steps=[1000, 500]", "model.text_tokens=8", "cache.preset=int2")
SETS += ("prompt=red ball", "sampler.negative_prompt=red")


@pytest.mark.parametrize("cut", [1, 3])
def test_segments_after_a_cut_are_the_same(longcat_weights, go_on, tmp_path, cut):
    sets = (*SETS, f"model.weights={longcat_weights}")
    whole, rest = go_on(load_config(Request(backend="longcat", sets=sets)).config, cut)
    assert [result.chunk.index for result in rest] == list(range(cut, 4))
    for one, other in zip(whole, rest, strict=True):
        assert one.latents.equal(other.latents)
        assert one.frames.equal(other.frames)
        assert one.memory == other.memory
    # Condition frames leave the cache with their segment, so no history is kept.
    assert not list((tmp_path / "state").glob("*.cache.safetensors"))
