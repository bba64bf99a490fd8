"""Models of the published layouts, or tiny ones, with random weights made on the device; for timing alone.

Names, shapes and dtypes are those of the published weights, so a step costs what it costs with them. Matrices
keep the size of what passes through them and norms are one: activations stay finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from qvg_cli.config.schema import RunConfig
from qvg_cli.device import model_dtype
from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.longcat.layers import TransformerConfig
from qvg_cli.models.longcat.model import LongCatTransformer
from qvg_cli.models.offload import STORAGE_DTYPE, Offload
from qvg_cli.models.parallel import Rows, Tokens
from qvg_cli.models.self_forcing.pipeline import SelfForcingTransformer
from qvg_cli.models.taehv import SmallNetwork, network_dtype
from qvg_cli.models.wan.checkpoint import dtype_of, is_block_matrix, put_tensor
from qvg_cli.models.wan.pipeline import place_transformer, place_vae

_TEXT_TOKENS = 48
"""Rows of a prompt that are not zero: a long sentence."""


@dataclass(frozen=True)
class Layout:
    """The sizes of a model family.

    Attributes:
        transformer: Arguments of its transformer.
        vae: Arguments of `AutoencoderKLWan`.
        sets: Settings that go with it, as `--set` takes them.
    """

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    sets: tuple[str, ...] = ()


_WAN = {"patch_size": (1, 2, 2), "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"}
_SELF_FORCING = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30, **_WAN}
_WALK = {
    **{"num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 48, "out_channels": 48},
    **{
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 14336,
        "num_layers": 30,
        "rope_max_seq_len": 1024,
        **_WAN,
    },
}
_LONGCAT = {
    **{"in_channels": 16, "out_channels": 16, "hidden_size": 4096, "depth": 48, "num_heads": 32},
    **{"caption_channels": 4096, "mlp_ratio": 4, "adaln_tembed_dim": 512, "frequency_embedding_size": 256},
    **{"patch_size": (1, 2, 2), "text_tokens_zero_pad": True},
}
# Wan-AI/Wan2.2-TI2V-5B-Diffusers, vae/config.json; its means and deviations change no time.
_VAE_22 = {
    **{"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2},
    **{"temperal_downsample": [False, True, True], "is_residual": True, "patch_size": 2},
    **{"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16, "scale_factor_temporal": 4},
    **{"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
}
_TINY_WAN = {
    **{"num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 16, "out_channels": 16},
    **{"text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, **_WAN},
}
_TINY_VAE = {
    **{"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "patch_size": 2},
    **{"temperal_downsample": [True, True], "in_channels": 12, "out_channels": 12},
}
_TINY = ("model.text_tokens=8", "video.height=32", "video.width=64")
FULL = {
    "self-forcing": Layout(_SELF_FORCING, {}),
    "hyworldplay": Layout(_WALK, _VAE_22),
    "longcat": Layout(_LONGCAT, {}),
}
"""As published; a VAE without arguments is that of Wan 2.1."""
TINY = {
    "self-forcing": Layout(_TINY_WAN, _TINY_VAE, _TINY),
    "hyworldplay": Layout(
        _TINY_WAN, _TINY_VAE, (*_TINY, "model.latent_channels=16", "model.spatial_factor=8")
    ),
    "longcat": Layout(
        {
            **_LONGCAT,
            **{"hidden_size": 128, "depth": 2, "num_heads": 2, "caption_channels": 16, "mlp_ratio": 1},
            **{"adaln_tembed_dim": 8, "frequency_embedding_size": 16},
        },
        _TINY_VAE,
        _TINY,
    ),
}
"""Sizes that a CPU runs in a second."""


class RandomModels:
    """Stands where a pipeline keeps its `Models`; random embeddings stand for every prompt.

    Args:
        layout: One of `FULL` or `TINY`.
        config: Of the run: its backend, dtype and memory.
    """

    def __init__(self, config: RunConfig, layout: Layout, device: torch.device, *, seed: int = 0) -> None:
        self.offload = Offload(config.memory, device)
        self.backend = config.backend
        self.layout = layout
        self.dtype = model_dtype(config.model, device)
        self.device = device
        self.tokens = Tokens()
        self.rows = Rows()
        self.prompts = self
        self._text_tokens = config.model.text_tokens
        self._seed = seed

    def prepare(self, prompts: Sequence[str]) -> None:
        """There is no text encoder to load."""

    def encode(self, prompt: str) -> Tensor:
        """`[1, text_tokens, C]` in place of any prompt's embeddings."""
        return self.text_states(1, self._text_tokens)

    @cached_property
    def transformer(self) -> nn.Module:
        """Ready to be attached to a cache."""
        model = self.draw_transformer()
        place_transformer(model, self.offload, self.dtype, self.tokens)
        return model

    def draw_transformer(self) -> nn.Module:
        """As it is read from files."""
        with torch.device("meta"):
            model = _build(self.backend, self.layout.transformer)
        self.offload.shard(model)

        def held_in(name: str) -> torch.dtype:
            is_stored = self.offload.is_fp8 and is_block_matrix(model, name)
            return STORAGE_DTYPE if is_stored else dtype_of(model, name, self.dtype)

        self._fill(model, held_in, self.offload.load_device)
        return model

    @cached_property
    def vae(self) -> AutoencoderKLWan:
        """From latents to pixels and back."""
        with torch.device("meta"):
            vae = AutoencoderKLWan(**self.layout.vae)
        self._fill(vae, lambda name: self.dtype, self.offload.vae_load_device)
        place_vae(vae, self.offload)
        return vae

    @cached_property
    def small_decoder(self) -> SmallNetwork:
        """What decodes in place of the VAE, if the run says so."""
        channels = self.layout.vae.get("z_dim", 16)
        with torch.device("meta"):
            network = SmallNetwork(channels, patch=1 if channels == 16 else 2)
        self._fill(network, lambda name: network_dtype(self.dtype), self.device)
        return network

    def text_states(self, rows: int, num_tokens: int) -> Tensor:
        """`[rows, num_tokens, C]` in place of a prompt's states: random, and zero after the prompt."""
        layout = self.layout.transformer
        width = layout.get("caption_channels") or layout.get("text_dim", 4096)
        generator = torch.Generator().manual_seed(self._seed)
        states = 0.1 * torch.randn(rows, num_tokens, width, generator=generator)
        states[:, min(_TEXT_TOKENS, num_tokens // 2 + 1) :] = 0
        return states.to(self.device, self.dtype)

    @torch.no_grad()
    def _fill(self, model: nn.Module, held_in: Callable[[str], torch.dtype], to: torch.device) -> None:
        """Give every parameter of a model without storage random values, and bring it to its place."""
        generator = torch.Generator(self.device).manual_seed(self._seed)
        for name, parameter in list(model.named_parameters()):
            dtype = held_in(name)
            drawn = self.dtype if dtype.itemsize == 1 else dtype
            made = torch.empty(parameter.shape, dtype=drawn, device=self.device)
            is_norm = name.endswith("gamma") or (name.endswith("weight") and made.ndim == 1)
            if is_norm:
                made.fill_(1)
            elif made.ndim == 1:
                made.normal_(0, 0.02, generator=generator)
            else:
                fan_in = made.shape[-1] if name.endswith("scale_shift_table") else made[0].numel()
                made.normal_(0, fan_in**-0.5, generator=generator)
            put_tensor(model, name, made.to(to, dtype))
        model.eval().requires_grad_(False)


def _build(backend: str, settings: Mapping[str, Any]) -> nn.Module:
    if backend == "longcat":
        return LongCatTransformer(TransformerConfig.read(settings, "the layout"))
    return (WalkTransformer if backend == "hyworldplay" else SelfForcingTransformer)(**settings)
