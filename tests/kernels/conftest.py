"""What the kernel tests share: every cache preset, and spans that look like a video model's."""

import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# The benches are scripts, not a package; their data generator and their presets are used here too.
sys.path.insert(0, str(REPOSITORY / "kernels" / "bench"))

import presets  # noqa: E402

ADAPTER = presets.ADAPTER


def preset_names():
    return sorted(path.stem for path in presets.PRESETS.glob("*.yaml"))


@cache
def preset_specs(name):
    """The key codec's and the value codec's spec."""
    preset = presets.load_preset(name)
    return preset.key, preset.value


def every_spec():
    """Each preset's different specs, as pytest parameters."""
    params = []
    for name in preset_names():
        key, value = preset_specs(name)
        params.append(pytest.param(key, id=f"{name}-k"))
        if value != key:
            params.append(pytest.param(value, id=f"{name}-v"))
    return params


def packed_specs():
    """The specs of `every_spec` that pack."""
    return [param for param in every_spec() if param.values[0].packs]
