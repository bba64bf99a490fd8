"""A packed history is saved, one that is not packed is computed again: the video is the same."""

import pytest

from qvg_cli.config.load import Request
from qvg_cli.models.registry import load_config

SMALL = ("video.height=32", "video.width=64", "video.frames=18", "sampler.steps=[1000, 500]")
SMALL += ("model.text_tokens=8", "prompt=red ball")


@pytest.mark.parametrize(
    ("cache", "is_kept", "window"),
    [
        ("preset=int2", True, "null"),
        ("layers.1.v.preset=trit", True, "9"),
        ("layers.1.v.preset=bf16", False, "9"),
        ("preset=quantwm-int2", False, "9"),
        ("preset=none", False, "null"),
    ],
)
def test_chunks_after_a_cut_are_the_same(tiny_weights, go_on, tmp_path, cache, is_kept, window):
    sets = (*SMALL, f"model.weights={tiny_weights}", f"cache.{cache}", f"sampler.window={window}")
    whole, rest = go_on(load_config(Request(sets=sets)).config, 3)
    assert len(rest) == 3
    for one, other in zip(whole, rest, strict=True):
        assert one.latents.equal(other.latents)
        assert one.frames.equal(other.frames)
        assert one.memory == other.memory
    assert any((tmp_path / "state").glob("*.cache.safetensors")) == is_kept
