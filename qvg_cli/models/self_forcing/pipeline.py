"""The loaded Self-Forcing family: text encoder, transformer and VAE of one weights folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.config.resources import weights_folder
from qvg_cli.errors import MissingModelError
from qvg_cli.models.base import Planner
from qvg_cli.models.loading import load_pretrained, model_dtype
from qvg_cli.models.offload import WAN_KEEPS, Residence, ResidentDecoder
from qvg_cli.models.self_forcing.config import SelfForcingConfig
from qvg_cli.models.self_forcing.denoiser import SelfForcingDenoiser
from qvg_cli.models.self_forcing.model import prepare
from qvg_cli.models.self_forcing.weights import read_published, transformer_from_published
from qvg_cli.models.text_store import PromptEncoder
from qvg_cli.models.vae import StreamingDecoder
from qvg_cli.models.vae_encode import encode_frames
from qvg_cli.planning.cache_forecast import CacheShape


class Models:
    """What stays loaded, each part read when it is first needed.

    Args:
        config: Names the weights folder, and what is held where.

    Raises:
        UsageError: The device cannot hold it so.
        MissingModelError: There is no such folder.
    """

    def __init__(self, config: SelfForcingConfig, device: torch.device) -> None:
        self.residence = Residence(config.memory, device)
        self.weights = weights_folder(config.model.weights)
        self.device = device
        self.dtype = model_dtype(config.model, device)
        self.prompts = PromptEncoder(self.weights, config.model.text_tokens, device, self.dtype)
        self._checkpoint = config.model.checkpoint

    @cached_property
    def vae(self) -> AutoencoderKLWan:
        """From latents to pixels and back."""
        vae = load_pretrained(AutoencoderKLWan, self.weights / "vae", self.dtype)
        vae.to(self.residence.vae_load_device)
        self.residence.place_vae(vae)
        return vae

    @cached_property
    def loaded_transformer(self) -> WanTransformer3DModel:
        """In CPU memory: the device's is free for the text encoder, which is larger."""
        return _load_transformer(self.weights, self._checkpoint, self.dtype)

    @cached_property
    def transformer(self) -> WanTransformer3DModel:
        """Ready to be attached to a cache."""
        model = self.loaded_transformer
        prepare(model, self.device)
        self.residence.place_transformer(model, self.dtype, WAN_KEEPS)
        return model


class SelfForcingPipeline:
    """See `qvg_cli.models.base.Pipeline`."""

    def __init__(self, config: SelfForcingConfig, models: Models) -> None:
        self._config = config
        self._models = models

    @property
    def cache_shape(self) -> CacheShape:
        """See `Pipeline.cache_shape`."""
        model, sampler = self._models.transformer.config, self._config.sampler
        return CacheShape(
            model.num_layers,
            model.num_attention_heads,
            model.attention_head_dim,
            sink_frames=0 if sampler.window is None else sampler.sink,
        )

    @property
    def latents_dtype(self) -> torch.dtype:
        """See `Pipeline.latents_dtype`."""
        return self._models.dtype

    def read_prompts(self, prompts: Sequence[str]) -> None:
        """See `Pipeline.read_prompts`."""
        self._models.prompts.read(prompts)

    def encode_prompt(self, prompt: str) -> Tensor:
        """See `Pipeline.encode_prompt`."""
        return self._models.prompts.encode(prompt)

    def denoiser(
        self, cache: KVCache, planner: Planner, prompt_embeds: Tensor, seed: int
    ) -> SelfForcingDenoiser:
        """See `Pipeline.denoiser`."""
        return SelfForcingDenoiser(self._models.transformer, cache, prompt_embeds, self._config.sampler)

    def encode_frames(self, frames: Tensor, seed: int) -> Tensor:
        """See `Pipeline.encode_frames`; the mean of the encoder's posterior."""
        # Read before there is room for it: what is read late stays where it waits.
        vae = self._models.vae
        with self._models.residence.pixels():
            return encode_frames(vae, frames).to(self._models.dtype)

    def decoder(self) -> ResidentDecoder:
        """See `Pipeline.decoder`."""
        decoder = StreamingDecoder(self._models.vae)
        return ResidentDecoder(decoder, self._models.residence, features=decoder)


def load_pipeline(config: SelfForcingConfig, device: torch.device) -> SelfForcingPipeline:
    """Load the weights that `config` names.

    Raises:
        MissingModelError: A part is missing or broken.
    """
    models = Models(config, device)
    # Read at once: what is missing or broken is found before a prompt is encoded.
    _ = models.vae, models.loaded_transformer
    return SelfForcingPipeline(config, models)


def _load_transformer(weights: Path, checkpoint: str | None, dtype: torch.dtype) -> WanTransformer3DModel:
    """The transformer in the file `checkpoint`, or else the one of a weights folder."""
    folder = weights / "transformer"
    source = _find_transformer(weights, folder) if checkpoint is None else Path(checkpoint).expanduser()
    if source == folder:
        return load_pretrained(WanTransformer3DModel, folder, dtype)
    if not source.is_file():
        raise MissingModelError(f"model.checkpoint={checkpoint} is no file")
    try:
        config = WanTransformer3DModel.load_config(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise MissingModelError(f"cannot read {folder / 'config.json'}: {error}") from error
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    model = transformer_from_published(read_published(source), settings, dtype)
    return model.eval().requires_grad_(False)


def _find_transformer(weights: Path, folder: Path) -> Path:
    """The transformer in diffusers' layout, or a published checkpoint beside the `config.json` of it."""
    found = sorted([*weights.glob("*.pt"), *weights.glob("*.safetensors")])
    if any(folder.glob("*.safetensors")) or not found:
        found.append(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise MissingModelError(
            f"{weights} has more than one transformer: {names}",
            hint=f"name the file, such as --set model.checkpoint={found[0]}",
        )
    return found[0]
