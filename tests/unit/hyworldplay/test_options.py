"""The options of walks on the command line are settings like any other."""

from pathlib import Path

import pytest

from qvg_cli.commands.options import option_layers
from qvg_cli.config_load import Request, load_config
from qvg_cli.errors import UsageError

NONE = {"prompt": None, "cache": None, "size": None, "seed": None, "device": None}
GIVEN = {
    "pose": ("w-3", "walk", "pose"),
    "pad_pose": ("hold", "walk", "pad_pose"),
    "context": ("incremental", "sampler", "context"),
    "image": (Path("photo.png"), "walk", "image"),
}


@pytest.mark.parametrize("option", GIVEN)
def test_every_option_sets_its_setting(option):
    value, section, name = GIVEN[option]
    layers = option_layers(**NONE, **{option: value})
    config = load_config(Request(backend="hyworldplay", options=layers)).config
    assert getattr(getattr(config, section), name) == str(value)


@pytest.mark.parametrize("option", GIVEN)
def test_other_backends_refuse_the_option_by_name(option):
    layers = option_layers(**NONE, **{option: GIVEN[option][0]})
    name = f"--{option.replace('_', '-')}"
    with pytest.raises(UsageError, match=f"^{name} is not an option of this backend$"):
        load_config(Request(backend="self-forcing", options=layers))


def test_without_weights_of_its_own_the_family_refuses_pocket():
    with pytest.raises(UsageError, match=r"^hyworldplay has no built-in weights$"):
        load_config(Request(backend="hyworldplay", pocket=True))
