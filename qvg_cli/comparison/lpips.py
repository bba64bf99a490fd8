"""How far two frames are apart to a person's eye, as LPIPS 0.1 estimates it: by the features of a VGG16.

The network's weights are downloaded on their own (`qvg download lpips`); the five layers of weights that
LPIPS learned on top of them ship with the package. Stock packages of LPIPS need torchvision, and its builds
fit one build of torch each: beside any other, such as one for CPUs, it does not import.

Source: Zhang et al. 2018 (arXiv 1801.03924), https://github.com/richzhang/PerceptualSimilarity, version 0.1.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from qvg_cli.config.resources import lpips_heads, qvg_home
from qvg_cli.errors import MissingModelError

NAME = "lpips"
"""In the folder of the download."""
_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-8


class PerceptualDistance(nn.Module):
    """LPIPS with random weights; see `load_perceptual_distance`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._taps = []
        channels = 3
        for number, widths in enumerate(_BLOCKS):
            if number:
                layers.append(nn.MaxPool2d(2))
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self._taps.append(len(layers) - 1)
        # Numbered as in torchvision's VGG16, whose names the published files have.
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList(torch.rand(widths[-1]) for widths in _BLOCKS)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The distances `[N]` of pairs of frames, 0 where they are equal.

        Args:
            first: `[N, height, width, 3]` uint8, at least 16 pixels each way.
            second: Like `first`.
        """
        # Frames `[N, 3, height, width]` as the network was trained to see them.
        dtype, shift, scale = self.heads[0].dtype, self.get_buffer("shift"), self.get_buffer("scale")
        one, other = (
            (frames.permute(0, 3, 1, 2).to(dtype) / 127.5 - 1 - shift) / scale for frames in (first, second)
        )
        distance = one.new_zeros(len(one))
        for index, layer in enumerate(self.features):
            one, other = layer(one), layer(other)
            if index in self._taps:
                difference = (_unit(one) - _unit(other)).square()
                head = self.heads[self._taps.index(index)].view(1, -1, 1, 1)
                distance += (difference * head).sum(dim=1).mean(dim=(1, 2))
        return distance


def load_perceptual_distance() -> PerceptualDistance:
    """LPIPS with its learned weights, on the CPU; `MissingModelError` without the network's whole file."""
    path = find_network()
    model = PerceptualDistance()
    try:
        with safe_open(path, framework="pt") as file:
            names = [f"features.{name}" for name, _ in model.features.named_parameters()]
            model.load_state_dict({name: file.get_tensor(name) for name in names}, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise MissingModelError(f"cannot read {path}: {error}", hint=f"qvg download {NAME}") from error
    for parameter, learned in zip(model.heads, sorted(load_file(lpips_heads()).items()), strict=True):
        parameter.copy_(learned[1])
    return model


def find_network() -> Path:
    """The file of the downloaded network; `MissingModelError` if it is not there."""
    path = qvg_home() / NAME / "vgg16" / "model.safetensors"
    if not path.is_file():
        raise MissingModelError(
            f"--lpips needs a VGG16 network, which is not at {path}",
            hint=f"download it with: qvg download {NAME} (528 MiB; --dry-run shows from where)",
        )
    return path


def _unit(features: Tensor) -> Tensor:
    """`[N, C, h, w]`, every pixel's features divided by their length."""
    return features / (features.square().sum(dim=1, keepdim=True) + _EPSILON).sqrt()
