"""The loaded Self-Forcing family: text encoder, transformer and VAE of one weights folder."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from qvg_cli.backends.loading import load_pretrained, model_dtype
from qvg_cli.backends.self_forcing.model import prepare
from qvg_cli.backends.self_forcing.session import SelfForcingSession
from qvg_cli.backends.self_forcing.weights import read_published, transformer_from_published
from qvg_cli.backends.text import TextEncoder
from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config import CacheConfig, RunConfig
from qvg_cli.errors import MissingModelError
from qvg_cli.plan import VideoPlan
from qvg_cli.resources import weights_folder
from qvg_cli.rollout import SeededNoise
from qvg_cli.video.vae_stream import StreamingDecoder


class SelfForcingPipeline:
    """See `qvg_cli.backends.base.Pipeline`."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        weights = weights_folder(config.model.weights)
        dtype = model_dtype(config.model, device)
        self._config = config
        self._text = TextEncoder(weights, config.model.text_tokens, device, dtype)
        self._vae = load_pretrained(AutoencoderKLWan, weights / "vae", dtype).to(device)
        self._transformer = _load_transformer(weights, dtype).to(device)
        prepare(self._transformer)

    def with_cache(self, cache: CacheConfig) -> SelfForcingPipeline:
        """See `Pipeline.with_cache`."""
        other = copy.copy(self)
        other._config = self._config.model_copy(update={"cache": cache})
        return other

    def encode_prompt(self, prompt: str) -> Tensor:
        """See `Pipeline.encode_prompt`."""
        return self._text.encode(prompt)

    def start(self, plan: VideoPlan, prompt_embeds: Tensor, seed: int) -> SelfForcingSession:
        """See `Pipeline.start`."""
        model = self._transformer.config
        sampler = self._config.sampler
        cache = open_cache(
            self._config.cache,
            plan,
            num_layers=model.num_layers,
            layer_width=prompt_embeds.shape[0] * model.num_attention_heads * model.attention_head_dim,
            sink_frames=0 if sampler.window is None else sampler.sink,
            seed=seed,
        )
        return SelfForcingSession(self._transformer, cache, prompt_embeds, sampler)

    def noise(self, plan: VideoPlan, seed: int) -> SeededNoise:
        """See `Pipeline.noise`."""
        return SeededNoise(plan, seed, like=self._transformer.patch_embedding.weight)

    def decoder(self) -> StreamingDecoder:
        """See `Pipeline.decoder`."""
        return StreamingDecoder(self._vae)


def load_pipeline(config: RunConfig, device: torch.device) -> SelfForcingPipeline:
    """Load the weights that `config` names.

    Raises:
        MissingModelError: A part is missing or broken.
    """
    return SelfForcingPipeline(config, device)


def _load_transformer(weights: Path, dtype: torch.dtype) -> WanTransformer3DModel:
    """The transformer in diffusers' layout, or of a published checkpoint beside `transformer/config.json`."""
    folder = weights / "transformer"
    published = sorted([*weights.glob("*.pt"), *weights.glob("*.safetensors")])
    if any(folder.glob("*.safetensors")) or not published:
        return load_pretrained(WanTransformer3DModel, folder, dtype)
    if len(published) > 1:
        names = ", ".join(path.name for path in published)
        raise MissingModelError(
            f"{weights} has more than one checkpoint: {names}", hint="keep one of them there"
        )
    try:
        config = WanTransformer3DModel.load_config(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise MissingModelError(f"cannot read {folder / 'config.json'}: {error}") from error
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    model = transformer_from_published(read_published(published[0]), settings, dtype)
    return model.eval().requires_grad_(False)
