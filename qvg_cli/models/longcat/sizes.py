"""How large this family's model is. No torch."""

from dataclasses import replace

from qvg_cli.config.resources import weights_folder
from qvg_cli.models.longcat.config import LongCatConfig
from qvg_cli.planning import sizes

_DEPTH, _HEADS, _HEAD_DIM = 48, 32, 128
_VALUES = 13_581_071_424
_FLOAT32_VALUES = 610_018_368
"""Values that stay float32: what modulates, and the embedding of time."""
_BLOCK_VALUES, _BLOCK_FLOAT32_VALUES = 282_132_992, 12_607_488
_MATRIX_VALUES = 12_936_806_400
_TOKEN_VALUES = 10.04
"""Values a channel at the fullest moment of a block: 82,200 bytes a token of a base clip, bf16, GPU."""


def model_sizes(config: LongCatConfig, *, is_gpu: bool) -> sizes.ModelSizes:
    """Sizes of the published model, or of that in the user's folder; `MissingModelError` if unreadable."""
    size = sizes.element_bytes(config.model.dtype, is_gpu=is_gpu)
    width, text_rows = _HEADS * _HEAD_DIM, config.num_rows
    vae = sizes.with_decoder(replace(sizes.WAN_21_VAE, keeps_features=False), config.video.decoder, 16)
    published = sizes.ModelSizes(
        num_layers=_DEPTH,
        heads=_HEADS,
        head_dim=_HEAD_DIM,
        transformer_bytes=_VALUES * size + _FLOAT32_VALUES * (4 - size),
        block_bytes=_BLOCK_VALUES * size + _BLOCK_FLOAT32_VALUES * (4 - size),
        matrix_values=_MATRIX_VALUES,
        text_encoder_bytes=sizes.TEXT_ENCODER_VALUES * size,
        token_bytes=_TOKEN_VALUES * width * size,
        text_bytes=text_rows * config.model.text_tokens * width * size,
        latent_bytes=4,
        vae=vae,
        vae_bytes=vae.values * size,
        rows=config.num_rows,
    )
    if config.has_published_weights:
        return published
    folder = weights_folder(config.model.weights)
    layout, values = sizes.read_layout(folder / "dit"), sizes.count_values(folder / "dit")
    own_vae = replace(sizes.read_vae(folder / "vae"), keeps_features=False)
    vae = sizes.with_decoder(own_vae, config.video.decoder, 16)
    part, width = values / _VALUES, layout["hidden_size"]
    return replace(
        published,
        num_layers=layout["depth"],
        heads=layout["num_heads"],
        head_dim=width // layout["num_heads"],
        transformer_bytes=round(published.transformer_bytes * part),
        block_bytes=round(published.block_bytes * part * _DEPTH / layout["depth"]),
        matrix_values=round(published.matrix_values * part),
        text_encoder_bytes=sizes.count_values(folder / "text_encoder") * size,
        token_bytes=_TOKEN_VALUES * width * size,
        text_bytes=text_rows * config.model.text_tokens * width * size,
        vae=vae,
        vae_bytes=vae.values * size,
    )
