"""The loaded LongCat-Video family: text encoder, transformer, adapter and VAE of one published folder.

The text encoder is loaded for a prompt and freed again, and the transformer when the first video starts, so
that they do not lie beside each other while the first prompt is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.config.resources import weights_folder
from qvg_cli.models.base import Planner, Rows
from qvg_cli.models.loading import load_pretrained, model_dtype
from qvg_cli.models.longcat.config import LongCatConfig
from qvg_cli.models.longcat.denoiser import LongCatDenoiser
from qvg_cli.models.longcat.model import LongCatTransformer
from qvg_cli.models.longcat.schedule import sampling_of
from qvg_cli.models.longcat.weights import Checkpoint
from qvg_cli.models.longcat.window import WindowDecoder
from qvg_cli.models.offload import LONGCAT_KEEPS, STORAGE_DTYPE, Residence, ResidentDecoder
from qvg_cli.models.text_store import PromptEncoder
from qvg_cli.models.vae_encode import encode_frames
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.randomness import derive_seed

DISTILLED_ADAPTER = "lora/cfg_step_lora.safetensors"


class Models:
    """What stays loaded, each part read when it is first needed.

    Args:
        config: Names the weights folder, by its mode the adapter, and what is held where.

    Raises:
        UsageError: The device cannot hold it so.
        MissingModelError: A part of the transformer is missing or does not fit.
    """

    def __init__(self, config: LongCatConfig, device: torch.device) -> None:
        self.residence = Residence(config.memory, device)
        self.weights = weights_folder(config.model.weights)
        self.device = device
        self.dtype = model_dtype(config.model, device)
        self.prompts = PromptEncoder(self.weights, config.model.text_tokens, device, self.dtype)
        is_distilled = config.sampler.mode == "distilled"
        adapters = [self.weights / DISTILLED_ADAPTER] if is_distilled else []
        self._checkpoint = Checkpoint(self.weights / "dit", adapters)

    @cached_property
    def transformer(self) -> LongCatTransformer:
        """With its adapter merged."""
        residence = self.residence
        model = self._checkpoint.load(
            dtype=self.dtype,
            device=residence.load_device,
            block_dtype=STORAGE_DTYPE if residence.is_fp8 else None,
        )
        residence.place_transformer(model, self.dtype, LONGCAT_KEEPS)
        return model

    @cached_property
    def vae(self) -> AutoencoderKLWan:
        """From latents to pixels and back."""
        vae = load_pretrained(AutoencoderKLWan, self.weights / "vae", self.dtype)
        vae.to(self.residence.vae_load_device)
        self.residence.place_vae(vae)
        return vae


class LongCatPipeline:
    """See `qvg_cli.models.base.Pipeline`.

    Args:
        rows: Who computes the rows of a guided step; none for this process alone.
    """

    def __init__(self, config: LongCatConfig, models: Models, rows: Rows | None = None) -> None:
        self._config = config
        self._models = models
        self._rows = rows

    @property
    def cache_shape(self) -> CacheShape:
        """See `Pipeline.cache_shape`. Both rows of the guidance share one row of cache."""
        model = self._models.transformer.config
        return CacheShape(model.depth, model.num_heads, model.head_dim)

    @property
    def latents_dtype(self) -> torch.dtype:
        """See `Pipeline.latents_dtype`."""
        return torch.float32

    def with_rows(self, rows: Rows) -> LongCatPipeline:
        """See `qvg_cli.engine.pair.GuidedPipeline.with_rows`."""
        return LongCatPipeline(self._config, self._models, rows)

    def read_prompts(self, prompts: Sequence[str]) -> None:
        """See `Pipeline.read_prompts`."""
        self._models.prompts.read([text for prompt in prompts for text in self._texts(prompt)])

    def encode_prompt(self, prompt: str) -> Tensor:
        """See `Pipeline.encode_prompt`. With guidance, the first row is the negative prompt."""
        self.read_prompts([prompt])
        return torch.cat([self._models.prompts.encode(text) for text in self._texts(prompt)])

    def _texts(self, prompt: str) -> list[str]:
        sampler = self._config.sampler
        return [sampler.negative_prompt, prompt] if sampler.is_guided else [prompt]

    def denoiser(self, cache: KVCache, planner: Planner, prompt_embeds: Tensor, seed: int) -> LongCatDenoiser:
        """See `Pipeline.denoiser`."""
        sampling = sampling_of(self._config.sampler)
        return LongCatDenoiser(self._models.transformer, cache, prompt_embeds, sampling, self._rows)

    def encode_frames(self, frames: Tensor, seed: int) -> Tensor:
        """See `Pipeline.encode_frames`; a draw from the encoder's posterior."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "clip"))
        # Read before there is room for it: what is read late stays where it waits.
        vae = self._models.vae
        with self._models.residence.pixels():
            return encode_frames(vae, frames, generator)

    def decoder(self) -> ResidentDecoder:
        """See `Pipeline.decoder`."""
        decoder = WindowDecoder(self._models.vae, self._config.sampler.condition_frames)
        return ResidentDecoder(decoder, self._models.residence)


def load_pipeline(config: LongCatConfig, device: torch.device) -> LongCatPipeline:
    """Load the weights that `config` names.

    Raises:
        MissingModelError: A part is missing or broken.
    """
    models = Models(config, device)
    # Read at once, being small: what is missing or broken is found before a prompt is encoded.
    _ = models.vae
    return LongCatPipeline(config, models)
