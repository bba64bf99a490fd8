"""A packed history is saved, one that is not packed is computed again: the video is the same."""

import pytest
import torch
from safetensors.torch import save_file

from qvg_cli.config.load import Request
from qvg_cli.models.registry import family_of, load_config

SMALL = ("video.height=32", "video.width=64", "video.frames=18", "sampler.steps=[1000, 500]")
SMALL += ("model.text_tokens=8", "prompt=red ball")


# What shapes errors is learnt from the first two chunks, which are made again if a cut comes between them.
@pytest.mark.parametrize(
    ("cache", "cut", "is_kept", "window"),
    [
        ("preset=int2", 3, True, "null"),
        ("layers.1.v.preset=bf16", 3, False, "9"),
        ("preset=none", 3, False, "null"),
        ("preset=int2-shaped", 1, True, "9"),
        ("layers.1.v.preset=bit1-shaped", 3, True, "9"),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                ("layers.1.v.preset=trit", 3, True, "9"),
                ("preset=quantwm-int2", 3, False, "9"),
                ("preset=int2-shaped", 3, True, "null"),
            )
        ),
    ],
)
def test_chunks_after_a_cut_are_the_same(tiny_weights, go_on, tmp_path, cache, cut, is_kept, window):
    sets = (*SMALL, f"model.weights={tiny_weights}", f"cache.{cache}", f"sampler.window={window}")
    whole, rest = go_on(load_config(Request(sets=sets)).config, cut)
    assert len(rest) == 6 - cut
    for one, other in zip(whole, rest, strict=True):
        assert one.latents.equal(other.latents)
        assert one.frames.equal(other.frames)
        assert one.memory == other.memory
    assert any((tmp_path / "state").glob("*.cache.safetensors")) == is_kept


def test_the_matrices_outlive_the_blocks_that_decided_them(tiny_weights, go_on, tmp_path):
    sets = (*SMALL, f"model.weights={tiny_weights}", "cache.preset=int2-shaped", "sampler.window=6")
    whole, rest = go_on(load_config(Request(sets=sets)).config, 5)
    assert whole[-1].latents.equal(rest[-1].latents)
    state = tmp_path / "state"
    assert (state / "00001.matrices.safetensors").exists()
    assert not (state / "00001.cache.safetensors").exists()


def test_blocks_are_read_again_by_the_matrices_that_came_with_the_model(tiny_weights, go_on, tmp_path):
    sets = (*SMALL, f"model.weights={tiny_weights}", "cache.preset=int2-shaped", "sampler.window=9")
    config = load_config(Request(sets=sets)).config
    sizes = family_of(config).sizes(config, is_gpu=False)
    one = torch.eye(sizes.head_dim) + 0.5 / sizes.head_dim
    names = [f"layer{number}.{side}" for number in range(sizes.num_layers) for side in ("key", "value")]
    path = tmp_path / "matrices.safetensors"
    save_file({name: one.repeat(sizes.heads, 1, 1).bfloat16() for name in names}, path)
    whole, rest = go_on(load_config(Request(sets=(*sets, f"cache.matrices={path}"))).config, 3)
    assert whole[-1].latents.equal(rest[-1].latents)
    assert [each.memory for each in whole] == [each.memory for each in rest]
    assert any((tmp_path / "state").glob("*.cache.safetensors"))
    assert not any((tmp_path / "state").glob("*.matrices.safetensors"))
