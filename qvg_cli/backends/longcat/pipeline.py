"""The loaded LongCat-Video family: text encoder, transformer, adapter and VAE of one published folder.

The text encoder is loaded for a prompt and freed again, and the transformer when the first video starts, so
that they do not lie beside each other while the first prompt is read.
"""

from __future__ import annotations

import copy
import functools

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from qvg_cli.backends.loading import load_pretrained, model_dtype
from qvg_cli.backends.longcat.config import LongCatConfig
from qvg_cli.backends.longcat.schedule import sampling_of
from qvg_cli.backends.longcat.session import LongCatSession
from qvg_cli.backends.longcat.weights import Checkpoint
from qvg_cli.backends.longcat.window import WindowDecoder
from qvg_cli.backends.text import TextEncoder
from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config import CacheConfig
from qvg_cli.plan import VideoPlan
from qvg_cli.resources import weights_folder
from qvg_cli.rollout import SeededNoise

DISTILLED_ADAPTER = "lora/cfg_step_lora.safetensors"


class LongCatPipeline:
    """See `qvg_cli.backends.base.Pipeline`."""

    def __init__(self, config: LongCatConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._dtype = model_dtype(config.model, device)
        self._weights = weights_folder(config.model.weights)
        is_distilled = config.sampler.mode == "distilled"
        adapters = [self._weights / DISTILLED_ADAPTER] if is_distilled else []
        checkpoint = Checkpoint(self._weights / "dit", adapters)
        # Called when a video starts; copies of this pipeline share what the first call loaded.
        self._transformer = functools.cache(
            functools.partial(checkpoint.load, dtype=self._dtype, device=device)
        )
        self._vae = load_pretrained(AutoencoderKLWan, self._weights / "vae", self._dtype).to(device)

    def with_cache(self, cache: CacheConfig) -> LongCatPipeline:
        """See `Pipeline.with_cache`."""
        other = copy.copy(self)
        other._config = self._config.model_copy(update={"cache": cache})
        return other

    def encode_prompt(self, prompt: str) -> Tensor:
        """See `Pipeline.encode_prompt`. With guidance, the first row is the negative prompt."""
        sampler = self._config.sampler
        prompts = [sampler.negative_prompt, prompt] if sampler.is_guided else [prompt]
        encoder = TextEncoder(self._weights, self._config.model.text_tokens, self._device, self._dtype)
        return torch.cat([encoder.encode(text) for text in prompts])

    def start(self, plan: VideoPlan, prompt_embeds: Tensor, seed: int) -> LongCatSession:
        """See `Pipeline.start`. Both rows of the guidance share one row of cache."""
        model = self._transformer()
        cache = open_cache(
            self._config.cache,
            plan,
            num_layers=model.config.depth,
            layer_width=model.config.hidden_size,
            sink_frames=0,
            seed=seed,
        )
        # The encoder's states are zero after the prompt and nowhere else.
        text = model.embed_text(prompt_embeds, prompt_embeds.any(dim=-1))
        return LongCatSession(model, cache, text, sampling_of(self._config.sampler))

    def noise(self, plan: VideoPlan, seed: int) -> SeededNoise:
        """See `Pipeline.noise`; float32, since latents are between the steps."""
        return SeededNoise(plan, seed, like=torch.empty(0, dtype=torch.float32, device=self._device))

    def decoder(self) -> WindowDecoder:
        """See `Pipeline.decoder`."""
        return WindowDecoder(self._vae, self._config.sampler.condition_frames)


def load_pipeline(config: LongCatConfig, device: torch.device) -> LongCatPipeline:
    """Load the weights that `config` names.

    Raises:
        MissingModelError: A part is missing or broken.
    """
    return LongCatPipeline(config, device)
