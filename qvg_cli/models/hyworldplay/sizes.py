"""How large this family's model is. No torch."""

from __future__ import annotations

from dataclasses import replace

from qvg_cli.models.hyworldplay.config import HyWorldPlayConfig
from qvg_cli.models.wan.sizes import WanLayout, wan_sizes
from qvg_cli.planning.sizes import WAN_22_VAE, ModelSizes

LAYOUT = WanLayout(
    num_layers=30,
    heads=24,
    head_dim=128,
    ffn_dim=14336,
    in_channels=48,
    out_channels=48,
    has_camera=True,
)
"""Of HY-WorldPlay on Wan2.2-TI2V-5B."""


def model_sizes(config: HyWorldPlayConfig, *, is_gpu: bool) -> ModelSizes:
    """See `wan_sizes`. The latents are float32."""
    sizes = wan_sizes(config, LAYOUT, WAN_22_VAE, is_gpu=is_gpu, transformer=config.model.transformer)
    return replace(sizes, latent_bytes=4, text_beside_vae=False)
