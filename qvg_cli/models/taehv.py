"""A small decoder in the place of the VAE's: TAEHV, which knows one frame of the past a block.

It reads the latents as the transformer makes them. Frames come as from the VAE: one of the first latent
frame, four of each other.

Source: madebyollin/taehv (MIT), `taehv.py`: layers, and that the first three of a video's frames are dropped.
diffusers 0.42 has no such class; names in its later layout: huggingface/diffusers,
`scripts/convert_taehv_to_diffusers.py`.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvg_cli.models.vae import FrameDecoder
from qvg_cli.models.wan.checkpoint import check_tensors, read_file

_WIDTHS = (256, 128, 64, 64)
"""Channels before and after each of the three times that a side is doubled."""
_GROWS = (1, 2, 2)
"""Frames that come of one there."""


class Bound(nn.Module):
    """Keeps latents within three."""

    def forward(self, states: Tensor) -> Tensor:
        return 3 * torch.tanh(states / 3)


class MemoryBlock(nn.Module):
    """A residual block that sees the frame before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner: list[nn.Module] = [nn.Conv2d(2 * width, width, 3, padding=1)]
        for _ in range(2):
            inner += [nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.conv = nn.Sequential(*inner)

    def forward(self, frames: Tensor, before: Tensor | None) -> Tensor:
        """`[n, C, h, w]` frames in order; `before` is the `[1, C, h, w]` ahead of them, if there is one."""
        first = torch.zeros_like(frames[:1]) if before is None else before
        seen = torch.cat([first, frames[:-1]])
        return functional.relu(self.conv(torch.cat([frames, seen], dim=1)) + frames)


class Grow(nn.Module):
    """Makes several frames of each."""

    def __init__(self, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(width, width * factor, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """`[n, C, h, w]` to `[n * factor, C, h, w]`."""
        return self.conv(frames).unflatten(1, (self.factor, -1)).flatten(0, 1)


class SmallNetwork(nn.Module):
    """The decoder of TAEHV, its layers numbered as by the authors.

    Args:
        patch: Pixels to a side that each position of the last layer has.
        widths: See `_WIDTHS`; others for tests.
    """

    def __init__(self, latent_channels: int, patch: int, widths: tuple[int, ...] = _WIDTHS) -> None:
        super().__init__()
        self.patch = patch
        layers = [Bound(), nn.Conv2d(latent_channels, widths[0], 3, padding=1), nn.ReLU()]
        for (width, following), factor in zip(pairwise(widths), _GROWS, strict=True):
            layers += [MemoryBlock(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), Grow(width, factor)]
            layers += [nn.Conv2d(width, following, 3, padding=1, bias=False)]
        layers += [nn.ReLU(), nn.Conv2d(widths[-1], 3 * patch**2, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, latents: Tensor, memory: list[Tensor | str | None]) -> Tensor:
        """Pixels `[4 n, 3, height, width]` in 0 .. 1 of `[n, C, h, w]` latent frames.

        Args:
            memory: The last frame that each memory block has seen, which is updated; `None` at the beginning.
        """
        states, at = latents, 0
        for layer in self.decoder:
            if isinstance(layer, MemoryBlock):
                before, memory[at] = memory[at], states[-1:].clone()
                states = layer(states, before if isinstance(before, Tensor) else None)
                at += 1
            else:
                states = layer(states)
        return functional.pixel_shuffle(states, self.patch).clamp(0, 1)


class SmallDecoder(FrameDecoder):
    """Decodes one video of one item with a `SmallNetwork`, which several decoders may share."""

    def __init__(self, network: SmallNetwork, *, is_beside: bool = False) -> None:
        num_blocks = sum(isinstance(layer, MemoryBlock) for layer in network.decoder)
        super().__init__(
            next(network.parameters()).device,
            num_features=num_blocks,
            # A block sees one frame of the past, at most a latent one.
            reach=num_blocks,
            side=network.patch * 2 ** len(_GROWS),
            is_beside=is_beside,
        )
        self._network = network

    @torch.no_grad()
    def decode_float(self, latents: Tensor) -> Tensor:
        assert latents.shape[0] == 1
        decoded = []
        for frame in latents[0].to(self._network.dtype).split(1, dim=1):
            # Frame by frame, so that the bits do not depend on the chunks.
            pixels = self._network(frame.transpose(0, 1), self._features)
            # Of the first, the three that stand for nothing are left out.
            decoded.append(pixels[-1:] if self._is_first else pixels)
            self._is_first = False
        return torch.cat(decoded).transpose(0, 1)[None] * 2 - 1


def read_network(path: Path) -> SmallNetwork:
    """The network of a file under the authors' names or diffusers', on the CPU, frozen; `MissingModelError`
    if it is none."""
    found = {original_name(name): tensor for name, tensor in read_file(path).items()}
    # What encodes is of no use here.
    found = {name: tensor for name, tensor in found.items() if not name.startswith("encoder.")}
    shapes = [found[name].shape for name in ("decoder.1.weight", "decoder.22.weight") if name in found]
    channels, values = (shapes[0][1], shapes[1][0]) if [len(shape) for shape in shapes] == [4, 4] else (16, 3)
    with torch.device("meta"):
        network = SmallNetwork(channels, patch=2 if values == 12 else 1)
    check_tensors(found, network.state_dict(), path)
    network.load_state_dict(found, assign=True)
    return network.eval().requires_grad_(False)


def network_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the network computes in beside a model in `dtype`: in 16 bits as published, with finer pixels."""
    return torch.float32 if dtype == torch.float32 else torch.float16


def original_name(name: str) -> str:
    """The authors' name of a tensor of the decoder under diffusers'; any other comes back as it is."""
    ends = {"conv_in": 1, "conv_out": 22}
    if match := re.fullmatch(r"decoder\.(conv_in|conv_out)\.(\w+)", name):
        return f"decoder.{ends[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"decoder\.blocks\.(\d)\.mem_blocks\.(\d)\.conv(\d)\.(\w+)", name):
        block, part, number = (int(digit) for digit in match.groups()[:3])
        return f"decoder.{3 + 6 * block + part}.conv.{2 * number - 2}.{match[4]}"
    if match := re.fullmatch(r"decoder\.blocks\.(\d)\.(time_grow|conv_out)\.(\w+)", name):
        at, is_grow = 7 + 6 * int(match[1]), match[2] == "time_grow"
        return f"decoder.{at}.conv.{match[3]}" if is_grow else f"decoder.{at + 1}.{match[3]}"
    return name
