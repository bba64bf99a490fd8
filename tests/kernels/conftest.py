"""What the kernel tests share: every cache preset, and spans that look like a video model's."""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch

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


def make_span(*shape, dtype=torch.float32):
    """Clusters, channel offsets and noise, `[B, H, S, D]`."""
    batch, heads, tokens, head_dim = shape
    generator = torch.Generator().manual_seed(tokens * head_dim)
    centres = torch.randn(batch, heads, 6, head_dim, generator=generator)
    ids = torch.randint(0, 6, (tokens,), generator=generator)
    offset = 4 * torch.randn(batch, heads, 1, head_dim, generator=generator)
    noise = 0.3 * torch.randn(batch, heads, tokens, head_dim, generator=generator)
    return (centres[:, :, ids] + offset + noise).to(dtype)
