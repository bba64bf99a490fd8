"""The loaded HY-WorldPlay family: VAE and transformer of one weights folder, the text encoder while it works.

The text encoder is larger than the transformer: it is loaded for a prompt, and dropped before the transformer
is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.config.resources import weights_folder
from qvg_cli.errors import MissingModelError
from qvg_cli.models.base import Planner
from qvg_cli.models.hyworldplay.config import HyWorldPlayConfig
from qvg_cli.models.hyworldplay.denoiser import HyWorldPlayDenoiser
from qvg_cli.models.hyworldplay.model import prepare
from qvg_cli.models.hyworldplay.plan import WalkPlanner
from qvg_cli.models.hyworldplay.weights import load_transformer
from qvg_cli.models.loading import load_pretrained, model_dtype
from qvg_cli.models.offload import WAN_KEEPS, Residence, ResidentDecoder
from qvg_cli.models.text_store import PromptEncoder
from qvg_cli.models.vae import StreamingDecoder
from qvg_cli.models.vae_encode import encode_frames
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.randomness import derive_seed
from qvg_cli.video.picture import fill_frame, open_image

SHARED_PARTS = ("vae", "text_encoder", "tokenizer")


class Models:
    """What stays loaded, each part read when it is first needed.

    Args:
        config: Names the weights folder, the latents that its VAE has to make, and what is held where.

    Raises:
        UsageError: The device cannot hold it so.
        MissingModelError: The folder lacks a part.
    """

    def __init__(self, config: HyWorldPlayConfig, device: torch.device) -> None:
        self.residence = Residence(config.memory, device)
        self.weights = weights_folder(config.model.weights)
        self.device = device
        self.dtype = model_dtype(config.model, device)
        self.prompts = PromptEncoder(self.weights, config.model.text_tokens, device, self.dtype)
        self._config = config.model
        for part in (config.model.transformer, *SHARED_PARTS):
            if not (self.weights / part).is_dir():
                raise MissingModelError(f"{self.weights} has no folder {part}")

    @cached_property
    def transformer(self) -> WanTransformer3DModel:
        """Ready to be attached to a cache."""
        model = load_transformer(
            self.weights / self._config.transformer, self.dtype, self.residence.load_device
        )
        prepare(model, self.device)
        self.residence.place_transformer(model, self.dtype, WAN_KEEPS)
        return model

    @cached_property
    def vae(self) -> AutoencoderKLWan:
        """Checked against the configuration."""
        vae = load_pretrained(AutoencoderKLWan, self.weights / "vae", self.dtype)
        vae.to(self.residence.vae_load_device)
        found = vae.config.z_dim, vae.config.scale_factor_spatial
        if found != (self._config.latent_channels, self._config.spatial_factor):
            raise MissingModelError(
                f"the VAE of {self.weights} makes {found[0]} channels, each {found[1]} pixels to a side",
                hint="set model.latent_channels and model.spatial_factor to these",
            )
        self.residence.place_vae(vae)
        return vae


class HyWorldPlayPipeline:
    """See `qvg_cli.models.base.Pipeline`."""

    def __init__(self, config: HyWorldPlayConfig, models: Models) -> None:
        self._config = config
        self._models = models

    @property
    def cache_shape(self) -> CacheShape:
        """See `Pipeline.cache_shape`."""
        model = self._models.transformer.config
        return CacheShape(model.num_layers, model.num_attention_heads, model.attention_head_dim)

    @property
    def latents_dtype(self) -> torch.dtype:
        """See `Pipeline.latents_dtype`."""
        return torch.float32

    def read_prompts(self, prompts: Sequence[str]) -> None:
        """See `Pipeline.read_prompts`."""
        self._models.prompts.read(prompts)

    def encode_prompt(self, prompt: str) -> Tensor:
        """See `Pipeline.encode_prompt`."""
        return self._models.prompts.encode(prompt)

    def denoiser(
        self, cache: KVCache, planner: Planner, prompt_embeds: Tensor, seed: int
    ) -> HyWorldPlayDenoiser:
        """See `Pipeline.denoiser`."""
        assert isinstance(planner, WalkPlanner)
        image = self._config.walk.image
        return HyWorldPlayDenoiser(
            self._models.transformer,
            cache,
            prompt_embeds,
            self._config.sampler,
            lambda: planner.path,
            planner.geometry.tokens_per_frame,
            None if image is None else self._encode_image(image, seed).repeat(len(prompt_embeds), 1, 1, 1, 1),
        )

    def decoder(self) -> ResidentDecoder:
        """See `Pipeline.decoder`."""
        decoder = StreamingDecoder(self._models.vae)
        return ResidentDecoder(decoder, self._models.residence, features=decoder)

    def encode_frames(self, frames: Tensor, seed: int) -> Tensor:
        """See `Pipeline.encode_frames`; a draw from the encoder's posterior."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "image"))
        # Read before there is room for it: what is read late stays where it waits.
        vae = self._models.vae
        with self._models.residence.pixels():
            return encode_frames(vae, frames, generator)

    def _encode_image(self, name: str, seed: int) -> Tensor:
        """Normalised latents `[1, C, 1, h, w]` float32 of a picture, drawn from the encoder's posterior."""
        video = self._config.video
        pixels = fill_frame(open_image(name), height=video.height, width=video.width)
        frame = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None, :, None]
        return self.encode_frames(frame, seed)


def load_pipeline(config: HyWorldPlayConfig, device: torch.device) -> HyWorldPlayPipeline:
    """Check the weights folder that `config` names; its parts are read when they are first needed.

    Raises:
        MissingModelError: A part is missing.
    """
    return HyWorldPlayPipeline(config, Models(config, device))
