"""How large this family's models are. No torch."""

from __future__ import annotations

from qvg_cli.backends.self_forcing.config import SelfForcingConfig
from qvg_cli.backends.wan_sizes import WanLayout
from qvg_cli.resources import weights_folder
from qvg_cli.sizes import (
    TEXT_ENCODER_VALUES,
    WAN_21_VAE,
    ModelSizes,
    count_values,
    element_bytes,
    read_layout,
    read_vae,
)

PUBLISHED = "self-forcing"
LAYOUT = WanLayout(num_layers=30, heads=12, head_dim=128, ffn_dim=8960, in_channels=16, out_channels=16)
"""Of Wan2.1-T2V-1.3B."""


def model_sizes(config: SelfForcingConfig, *, is_gpu: bool) -> ModelSizes:
    """Sizes of the published model, or of that in the folder that `model.weights` names.

    Raises:
        MissingModelError: There is no such folder, or what it holds cannot be counted.
    """
    size = element_bytes(config.model.dtype, is_gpu=is_gpu)
    layout, vae, text_values = LAYOUT, WAN_21_VAE, TEXT_ENCODER_VALUES
    if config.model.weights != PUBLISHED:
        folder = weights_folder(config.model.weights)
        layout = WanLayout.read(read_layout(folder / "transformer"))
        vae, text_values = read_vae(folder / "vae"), count_values(folder / "text_encoder")
    return ModelSizes(
        num_layers=layout.num_layers,
        heads=layout.heads,
        head_dim=layout.head_dim,
        transformer_bytes=layout.transformer_bytes(size),
        block_bytes=layout.block_bytes(size),
        matrix_values=layout.matrix_values,
        text_encoder_bytes=text_values * size,
        token_bytes=layout.token_bytes(size),
        text_bytes=layout.text_bytes(config.model.text_tokens, size),
        latent_bytes=size,
        vae=vae,
        vae_bytes=vae.values * size,
        sink_frames=0 if config.sampler.window is None else config.sampler.sink,
    )
