"""A packed history is saved, one that is not packed is computed again: the video is the same."""

import pytest

from qvg_cli.config.load import Request
from qvg_cli.models.registry import load_config

SMALL = ("video.height=32", "video.width=64", "video.frames=18", "sampler.steps=[1000, 500]")
SMALL += ("model.text_tokens=8", "prompt=red ball")


@pytest.mark.parametrize(
    ("preset", "is_kept", "window"),
    [("int2", True, "null"), ("int2", True, "9"), ("bf16", False, "9"), ("none", False, "null")],
)
def test_chunks_after_a_cut_are_the_same(tiny_weights, go_on, tmp_path, preset, is_kept, window):
    sets = (*SMALL, f"model.weights={tiny_weights}", f"cache.preset={preset}", f"sampler.window={window}")
    whole, rest = go_on(load_config(Request(sets=sets)).config, 3)
    assert len(rest) == 3
    for one, other in zip(whole, rest, strict=True):
        assert one.latents.equal(other.latents)
        assert one.frames.equal(other.frames)
        assert one.memory == other.memory
    assert any((tmp_path / "state").glob("*.cache.safetensors")) == is_kept
