"""The VAE's decoder on a GPU: diffusers' layers with fewer passes over memory, in channels-last layout.

A decoded frame of 480x832 has 400,000 pixels of 96 to 384 channels, so what a layer reads and writes beside
its convolution costs as much as the convolution. Norm and activation are one kernel that writes where the
next convolution reads, zero padding is the convolution's own, and nothing changes its layout in between.
Values are those of the stock layers up to bf16 rounding; parameters are the same tensors.

Layers change their class in place: `AutoencoderKLWan` builds them itself and takes no others.
"""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
    WanUpsample,
)
from torch import Tensor, nn
from torch.nn import functional

from qvg_kernels.norm.silu import norm_silu

_CACHED_FRAMES = 2
"""Frames of the past that a convolution over three frames sees."""

Features = list[Any]
"""What each convolution remembers: a tensor, a mark, or `None` before the first frame."""


def speed_up(vae: AutoencoderKLWan) -> None:
    """Let the decoder of a VAE compute with fewer passes over memory; done once, on a GPU."""
    for module in list(vae.decoder.modules()):
        for stock, fast in _CLASSES.items():
            if type(module) is stock:
                module.__class__ = fast
    for module in vae.decoder.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    # The last norm and its activation become one kernel too.
    vae.decoder.norm_out.__class__ = NormSilu
    vae.decoder.nonlinearity = nn.Identity()


class FastCausalConv3d(WanCausalConv3d):  # type: ignore[misc]  # diffusers has no types
    """A causal convolution whose zero padding is not written out."""

    def forward(self, states: Tensor, before: Tensor | None = None) -> Tensor:
        """`[B, C, T, H, W]` to the same frames; `before` are the newest frames of the past."""
        front = self._padding[4]
        if front:
            states = _with_past(states, before, front)
        return self.convolve(states)

    def convolve(self, states: Tensor) -> Tensor:
        """Convolve frames in front of which the past stands already."""
        left, _, top, _, _, _ = self._padding
        return functional.conv3d(states, self.weight, self.bias, self.stride, (0, top, left))


class NormSilu(WanRMS_norm):  # type: ignore[misc]  # diffusers has no types
    """The norm over channels and the activation after it."""

    def forward(self, states: Tensor) -> Tensor:
        """`[B, C, T, H, W]` to the same."""
        out = torch.empty_like(states, memory_format=torch.channels_last_3d)
        norm_silu(states, self.gamma.flatten(), self.scale, out)
        return out


class FastResidualBlock(WanResidualBlock):  # type: ignore[misc]  # diffusers has no types
    """Two convolutions, each after a norm and an activation that are written where it reads."""

    def forward(
        self, states: Tensor, feat_cache: Features | None = None, feat_idx: list[int] | None = None
    ) -> Tensor:
        """`[B, C, T, H, W]` to `[B, C', T, H, W]`."""
        shortcut = self.conv_shortcut(states)
        for norm, convolution in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            before, at = None, 0
            if feat_cache is not None and feat_idx is not None:
                at = feat_idx[0]
                before, feat_idx[0] = feat_cache[at], at + 1
            # Normed and activated frames, the past in front of them: `[B, C, 2 + T, H, W]`.
            joined = _room_after_past(states, before, _CACHED_FRAMES)
            norm_silu(states, norm.gamma.flatten(), norm.scale, joined[:, :, _CACHED_FRAMES:])
            if feat_cache is not None:
                feat_cache[at] = joined[:, :, -_CACHED_FRAMES:].clone()
            states = convolution.convolve(joined)
        return states.add_(shortcut)


class FastUpsample(WanUpsample):  # type: ignore[misc]  # diffusers has no types
    """Repeats pixels, which needs no float32."""

    def forward(self, states: Tensor) -> Tensor:
        """`[N, C, H, W]` to `[N, C, 2 H, 2 W]`."""
        return nn.Upsample.forward(self, states)


class FastResample(WanResample):  # type: ignore[misc]  # diffusers has no types
    """Doubles the frames without leaving the channels-last layout."""

    def forward(
        self, states: Tensor, feat_cache: Features | None = None, feat_idx: list[int] | None = None
    ) -> Tensor:
        """`[B, C, T, H, W]` to twice the size, and to `2 T` frames after the video's first."""
        if self.mode == "upsample3d" and feat_cache is not None and feat_idx is not None:
            at = feat_idx[0]
            feat_idx[0] = at + 1
            if feat_cache[at] is None:
                # The first latent frame stands for one frame.
                feat_cache[at] = "Rep"
            else:
                before = feat_cache[at] if isinstance(feat_cache[at], Tensor) else None
                joined = _with_past(states, before, _CACHED_FRAMES)
                feat_cache[at] = joined[:, :, -_CACHED_FRAMES:].clone()
                states = _interleave(self.time_conv.convolve(joined))
        batch, channels, frames, height, width = states.shape
        images = states.transpose(1, 2).reshape(batch * frames, channels, height, width)
        images = self.resample(images)
        return images.unflatten(0, (batch, frames)).transpose(1, 2)


_CLASSES = {
    WanCausalConv3d: FastCausalConv3d,
    WanResidualBlock: FastResidualBlock,
    WanUpsample: FastUpsample,
    WanResample: FastResample,
}


def _with_past(states: Tensor, before: Tensor | None, num_frames: int) -> Tensor:
    """`[B, C, num_frames + T, H, W]`: the past, zeros where there is none, then `states`."""
    joined = _room_after_past(states, before, num_frames)
    joined[:, :, num_frames:] = states
    return joined


def _room_after_past(states: Tensor, before: Tensor | None, num_frames: int) -> Tensor:
    """`[B, C, num_frames + T, H, W]`: the past, zeros where there is none, then room for `states`."""
    batch, channels, frames, height, width = states.shape
    joined = torch.empty(
        (batch, channels, num_frames + frames, height, width),
        dtype=states.dtype,
        device=states.device,
        memory_format=torch.channels_last_3d,
    )
    num_before = 0 if before is None else min(num_frames, before.shape[2])
    joined[:, :, : num_frames - num_before] = 0
    if before is not None:
        joined[:, :, num_frames - num_before : num_frames] = before[:, :, -num_before:]
    return joined


def _interleave(states: Tensor) -> Tensor:
    """`[B, 2 C, T, H, W]`, two frames in the channels of one, to `[B, C, 2 T, H, W]`."""
    pairs = states.permute(0, 2, 3, 4, 1).unflatten(-1, (2, -1)).permute(0, 1, 4, 2, 3, 5)
    return pairs.flatten(1, 2).permute(0, 4, 1, 2, 3)
