"""The pocket VAE: its configuration, and a fast differentiable pass through the stock modules for training.

Stock `AutoencoderKLWan` encodes 1 + 4 + 4 ... pixel frames and decodes one latent frame at a time, with a
cache of past features between the calls. All its convolutions are causal, so everything after the first frame
can go through in one call with the same cache: same result, a fraction of the launches. tests/unit/pocket
compares the two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanDecoder3d,
    WanEncoder3d,
    WanResidualBlock,
    WanRMS_norm,
    patchify,
    unpatchify,
)
from torch import Tensor, nn

LATENT_CHANNELS = 16
# The log-variance half of the encoder's output is not trained; it is a constant, and users take the mean.
LOG_VARIANCE = -9.2


def build_vae() -> AutoencoderKLWan:
    """8x8 spatial and 4x temporal compression; widths are multiples of 32, which tensor cores like."""
    vae = AutoencoderKLWan(
        base_dim=32,
        decoder_base_dim=32,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 3],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    with torch.no_grad():
        vae.quant_conv.weight[LATENT_CHANNELS:] = 0
        vae.quant_conv.bias[LATENT_CHANNELS:] = LOG_VARIANCE
    return vae


def encode_mean(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Encode `[B, 3, 1 + 4n, H, W]` in [-1, 1] to the posterior mean `[B, 16, 1 + n, H / 8, W / 8]`."""
    patches = patchify(video, vae.config.patch_size).contiguous(memory_format=torch.channels_last_3d)
    vae.clear_cache()
    cache = vae._enc_feat_map
    parts = [vae.encoder(patches[:, :, :1], feat_cache=cache, feat_idx=[0])]
    if patches.shape[2] > 1:
        parts.append(vae.encoder(patches[:, :, 1:], feat_cache=cache, feat_idx=[0]))
    vae.clear_cache()
    return vae.quant_conv(torch.cat(parts, dim=2))[:, :LATENT_CHANNELS]


def decode_unclamped(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode `[B, 16, 1 + n, h, w]` to `[B, 3, 1 + 4n, 8h, 8w]`, not clamped, so that gradients pass."""
    hidden = vae.post_quant_conv(latents)
    vae.clear_cache()
    cache = vae._feat_map
    parts = [vae.decoder(hidden[:, :, :1], feat_cache=cache, feat_idx=[0], first_chunk=True)]
    if hidden.shape[2] > 1:
        parts.append(vae.decoder(hidden[:, :, 1:], feat_cache=cache, feat_idx=[0]))
    vae.clear_cache()
    return unpatchify(torch.cat(parts, dim=2), vae.config.patch_size)


def _norm_silu(rows: Tensor, gamma: Tensor) -> Tensor:
    """RMS-normalise `[N, C]` rows in fp32, scale and apply SiLU."""
    wide = rows.float()
    scale = torch.rsqrt(wide.square().sum(-1, keepdim=True).clamp(min=1e-24)) * wide.shape[-1] ** 0.5
    return F.silu(wide * scale * gamma).to(rows.dtype)


class _FusedNormSilu(WanRMS_norm):
    """The norm and the SiLU behind it in one kernel, when compiled; same parameter, same name."""

    kernel = staticmethod(_norm_silu)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 4, 1)
        shape = rows.shape
        return (
            self.kernel(rows.reshape(-1, shape[-1]), self.gamma.flatten()).view(shape).permute(0, 4, 1, 2, 3)
        )


class _LeanCausalConv3d(WanCausalConv3d):
    """The causal convolution with the spatial padding left to the convolution: one copy less."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        left, _, top, _, past, _ = self._padding
        if cache_x is not None and past > 0:
            x = torch.cat([cache_x, x], dim=2)
            past -= cache_x.shape[2]
        if past > 0:
            x = F.pad(x, (0, 0, 0, 0, past, 0))
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, top, left))


def make_fast(vae: AutoencoderKLWan, *, compiled: bool) -> AutoencoderKLWan:
    """Swap norms and convolutions of `vae` for equivalent leaner ones; names and parameters stay."""
    if compiled:
        # One variant for each width, precision and gradient mode.
        torch._dynamo.config.recompile_limit = 64
        _FusedNormSilu.kernel = staticmethod(torch.compile(_norm_silu, dynamic=True))
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            module.norm1.__class__ = module.norm2.__class__ = _FusedNormSilu
            module.nonlinearity = nn.Identity()
        elif isinstance(module, (WanEncoder3d, WanDecoder3d)):
            module.norm_out.__class__ = _FusedNormSilu
            module.nonlinearity = nn.Identity()
        elif isinstance(module, WanCausalConv3d):
            module.__class__ = _LeanCausalConv3d
    for parameter in vae.parameters():
        if parameter.ndim >= 4 and parameter.shape[-1] > 1:
            layout = torch.channels_last_3d if parameter.ndim == 5 else torch.channels_last
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return vae


def normalize_latents(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Shift and scale raw latents by the statistics in the configuration."""
    mean, std = latent_statistics(vae, latents)
    return (latents - mean) / std


def denormalize_latents(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Undo `normalize_latents`."""
    mean, std = latent_statistics(vae, latents)
    return latents * std + mean


def latent_statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the configuration, `[1, 16, 1, 1, 1]` each."""
    shape = (1, -1, 1, 1, 1)
    mean, std = vae.config.latents_mean, vae.config.latents_std
    return like.new_tensor(mean).view(shape), like.new_tensor(std).view(shape)
