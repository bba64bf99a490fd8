"""The loaded Self-Forcing family, and where its transformer is found."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.environment import expand_user
from qvg_cli.errors import MissingModelError
from qvg_cli.models.base import Planner
from qvg_cli.models.self_forcing.config import CheckpointModelConfig, SelfForcingConfig
from qvg_cli.models.self_forcing.denoiser import SelfForcingDenoiser, SelfForcingTransformer
from qvg_cli.models.wan.checkpoint import WEIGHTS_KEYS, Checkpoint, open_wan, read_published
from qvg_cli.models.wan.lora import open_loras
from qvg_cli.models.wan.pipeline import Models, WanPipeline
from qvg_cli.planning.cache_forecast import CacheShape


class SelfForcingPipeline(WanPipeline[SelfForcingConfig, SelfForcingTransformer]):
    """Latents in the model's dtype; clips are encoded to the mean of the posterior."""

    @property
    def cache_shape(self) -> CacheShape:
        sampler, shape = self._config.sampler, super().cache_shape
        return shape if sampler.window is None else replace(shape, sink_frames=sampler.sink)

    @property
    def latents_dtype(self) -> torch.dtype:
        return self._models.dtype

    def denoiser(
        self, cache: KVCache, planner: Planner, prompt_embeds: Tensor, seed: int
    ) -> SelfForcingDenoiser:
        return SelfForcingDenoiser(self._models.transformer, cache, prompt_embeds, self._config.sampler)


def load_pipeline(config: SelfForcingConfig, device: torch.device) -> SelfForcingPipeline:
    """Load the weights that `config` names; `MissingModelError` if a part is missing or broken."""
    models = Models(config, device, partial(_open_checkpoint, config=config.model))
    # Read at once: what is missing or broken is found before a prompt is encoded.
    _ = models.vae
    return SelfForcingPipeline(config, models)


def _open_checkpoint(weights: Path, config: CheckpointModelConfig) -> Checkpoint[SelfForcingTransformer]:
    """The transformer in the file that is named, or else the one of a weights folder."""
    folder, checkpoint = weights / "transformer", config.checkpoint
    adapters = open_loras(config.lora)
    source = _find_transformer(weights, folder) if checkpoint is None else expand_user(checkpoint)
    if source == folder:
        return open_wan(SelfForcingTransformer, folder, adapters=adapters)
    if not source.is_file():
        raise MissingModelError(f"model.checkpoint={checkpoint} does not exist")
    tensors = read_published(source, WEIGHTS_KEYS[config.weights_key])
    return open_wan(SelfForcingTransformer, folder, tensors, source, adapters)


def _find_transformer(weights: Path, folder: Path) -> Path:
    """The transformer in diffusers' layout, or a published checkpoint beside the `config.json` of it."""
    found = sorted([*weights.glob("*.pt"), *weights.glob("*.safetensors")])
    if any(folder.glob("*.safetensors")) or not found:
        found.append(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise MissingModelError(
            f"{weights} has more than one transformer: {names}",
            hint=f"choose one, e.g. --set model.checkpoint={found[0]}",
        )
    return found[0]
