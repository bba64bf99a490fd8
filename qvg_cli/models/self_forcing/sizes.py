"""How large this family's models are. No torch."""

from __future__ import annotations

from dataclasses import replace

from qvg_cli.models.self_forcing.config import SelfForcingConfig
from qvg_cli.models.wan.sizes import WanLayout, wan_sizes
from qvg_cli.planning.sizes import WAN_21_VAE, ModelSizes

LAYOUT = WanLayout(num_layers=30, heads=12, head_dim=128, ffn_dim=8960, in_channels=16, out_channels=16)
"""Of Wan2.1-T2V-1.3B."""


def model_sizes(config: SelfForcingConfig, *, is_gpu: bool) -> ModelSizes:
    """See `wan_sizes`. A window keeps its sink."""
    sampler = config.sampler
    sizes = wan_sizes(config, LAYOUT, WAN_21_VAE, is_gpu=is_gpu)
    return replace(sizes, sink_frames=0 if sampler.window is None else sampler.sink)
