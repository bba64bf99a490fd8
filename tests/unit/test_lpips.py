"""LPIPS on a random network against torchmetrics' figures for the same network and frames."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvg_cli.comparison.lpips import load_perceptual_distance
from qvg_cli.config.resources import lpips_heads
from qvg_cli.errors import MissingModelError


def frames():
    generator = torch.Generator().manual_seed(3)
    ramp = torch.linspace(0, 255, 40 * 56 * 3).view(1, 40, 56, 3).expand(2, -1, -1, -1)
    noise = torch.randn(2, 40, 56, 3, generator=generator) * torch.tensor([4.0, 25.0]).view(2, 1, 1, 1)
    return ramp.round().to(torch.uint8), (ramp + noise).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture
def model(random_vgg, monkeypatch):
    monkeypatch.setenv("QVG_HOME", str(random_vgg))
    return load_perceptual_distance()


def test_distances_are_those_of_torchmetrics(model):
    # Computed once by torchmetrics 1.9, net "vgg" with its own heads, in float64.
    expected = torch.tensor([0.0032356736443449998, 0.04698160381473801], dtype=torch.float64)
    torch.testing.assert_close(model(*frames()).double(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(model.double()(*frames()), expected, rtol=1e-6, atol=0)


def test_equal_frames_are_not_apart(model):
    first, _ = frames()
    assert model(first, first).tolist() == [0, 0]


def test_the_heads_are_those_of_version_0_1():
    heads = load_file(lpips_heads())
    assert {name: len(tensor) for name, tensor in heads.items()} == {
        "lin0": 64,
        "lin1": 128,
        "lin2": 256,
        "lin3": 512,
        "lin4": 512,
    }
    # Distances are sums: no head is negative.
    assert all((tensor >= 0).all() for tensor in heads.values())


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_a_broken_network_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setenv("QVG_HOME", str(tmp_path))
    path = tmp_path / "lpips" / "vgg16" / "model.safetensors"
    path.parent.mkdir(parents=True)
    if content is None:
        save_file({"features.0.weight": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(MissingModelError, match=r"cannot read .*model\.safetensors"):
        load_perceptual_distance()
