"""Sizes of the models that are diffusers' Wan transformer: counted from the layout. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qvg_cli.config.resources import weights_folder
from qvg_cli.config.schema import RunConfig
from qvg_cli.errors import MissingModelError
from qvg_cli.planning import sizes


@dataclass(frozen=True)
class WanLayout:
    """What of `transformer/config.json` decides the sizes.

    Attributes:
        has_camera: Whether it has the parts that HY-WorldPlay adds: an action embedding, and in each block a
            second output projection.
    """

    num_layers: int
    heads: int
    head_dim: int
    ffn_dim: int
    in_channels: int
    out_channels: int
    text_dim: int = 4096
    freq_dim: int = 256
    has_camera: bool = False

    @classmethod
    def read(cls, layout: Mapping[str, Any], *, has_camera: bool = False) -> WanLayout:
        """From the content of a `config.json` of diffusers; `MissingModelError` if a size is missing."""
        others = {"heads": "num_attention_heads", "head_dim": "attention_head_dim"}
        names = {field.name: others.get(field.name, field.name) for field in fields(cls)[:-1]}
        for name in names.values():
            if not isinstance(layout.get(name), int):
                raise MissingModelError(f"the transformer's config.json gives no {name}")
        return cls(**{own: layout[name] for own, name in names.items()}, has_camera=has_camera)

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def matrix_values(self) -> int:
        """Weights and biases of the linear layers of all blocks."""
        attention = (9 if self.has_camera else 8) * _linear(self.width, self.width)
        feed_forward = _linear(self.width, self.ffn_dim) + _linear(self.ffn_dim, self.width)
        return self.num_layers * (attention + feed_forward)

    def block_bytes(self, element_bytes: int) -> int:
        """One block: its norm before the text and its modulation are float32, all else in the run's dtype."""
        normed = 4 * self.width
        return (self.matrix_values // self.num_layers + normed) * element_bytes + 8 * self.width * 4

    def transformer_bytes(self, element_bytes: int) -> int:
        """All weights; the embedding of time and of the camera's action are float32."""
        time = _linear(self.freq_dim, self.width) + _linear(self.width, self.width)
        float32 = time * (2 if self.has_camera else 1) + 2 * self.width
        others = (
            _linear(4 * self.in_channels, self.width)
            + _linear(self.width, 6 * self.width)
            + _linear(self.text_dim, self.width)
            + _linear(self.width, self.width)
            + _linear(self.width, 4 * self.out_channels)
        )
        blocks = self.num_layers * self.block_bytes(element_bytes)
        return blocks + others * element_bytes + float32 * 4

    def token_bytes(self, element_bytes: int) -> float:
        """What a token takes at the fullest moment of a block, which is inside its feed-forward part."""
        # Traced: 48,477 bytes at 1,536 channels and 8,960, 83,330 at 3,072 and 14,336, in bf16.
        return (4.15 * self.width + 2 * self.ffn_dim) * element_bytes

    def text_bytes(self, text_tokens: int, element_bytes: int) -> int:
        """Keys and values of the prompt, which all blocks keep."""
        return 2 * self.num_layers * text_tokens * self.width * element_bytes


def wan_sizes(
    config: RunConfig,
    layout: WanLayout,
    vae: sizes.VaeSizes,
    *,
    is_gpu: bool,
    transformer: str = "transformer",
) -> sizes.ModelSizes:
    """Sizes of the published model, or of that in the folder `weights`; `MissingModelError` if it has none.

    Args:
        transformer: Its folder in the one that `weights` names.
    """
    text_values = sizes.TEXT_ENCODER_VALUES
    if not config.has_published_weights:
        folder = weights_folder(config.model.weights)
        layout = WanLayout.read(sizes.read_layout(folder / transformer), has_camera=layout.has_camera)
        vae, text_values = sizes.read_vae(folder / "vae"), sizes.count_values(folder / "text_encoder")
    vae = sizes.with_decoder(vae, config.video.decoder, layout.in_channels, is_beside=config.uses_vae)
    size = sizes.element_bytes(config.model.dtype, is_gpu=is_gpu)
    return sizes.ModelSizes(
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
        streams=2 if layout.has_camera else 1,
    )


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
