"""The options of walks on the command line are settings like any other."""

from pathlib import Path

import pytest

from qvg_cli.config.load import Request, option_layers
from qvg_cli.config.resources import weights_folder
from qvg_cli.errors import UsageError
from qvg_cli.models.hyworldplay.plan import plan_video
from qvg_cli.models.registry import family_of, load_config

GIVEN = {
    "pose": ("w-3", "walk", "pose"),
    "pad_pose": ("hold", "walk", "pad_pose"),
    "context": ("incremental", "sampler", "context"),
    "image": (Path("photo.png"), "walk", "image"),
}


@pytest.mark.parametrize("option", GIVEN)
def test_every_option_sets_its_setting(option):
    value, section, name = GIVEN[option]
    layers = option_layers({option: value})
    config = load_config(Request(backend="hyworldplay", options=layers)).config
    assert getattr(getattr(config, section), name) == str(value)


@pytest.mark.parametrize("option", [option for option in GIVEN if option != "image"])
def test_other_backends_refuse_the_option_by_name(option):
    layers = option_layers({option: GIVEN[option][0]})
    name = f"--{option.replace('_', '-')}"
    with pytest.raises(UsageError, match=f"^{name} is not an option of this model$"):
        load_config(Request(backend="self-forcing", options=layers))


def test_the_small_built_in_model_brings_its_own_sizes_and_picture():
    config = load_config(Request(backend="hyworldplay", pocket=True)).config
    assert config.model.weights == "pocket"
    plan = plan_video(config)
    assert plan.latent_shape == (16, 16, 28)
    assert len(plan.chunks) == 4
    sizes = family_of(config).sizes(config, is_gpu=False)
    stored = weights_folder("pocket") / config.model.transformer / "diffusion_pytorch_model.safetensors"
    assert sizes.transformer_bytes == pytest.approx(2 * stored.stat().st_size, rel=0.01)
