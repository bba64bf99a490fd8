"""The loaded Self-Forcing family, where its transformer is found, and one video of it in the making.

A few calls a chunk, then the cache-update pass.

Source: guandeh17/Self-Forcing at 33593df, `pipeline/causal_inference.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.environment import expand_user
from qvg_cli.errors import MissingModelError
from qvg_cli.models.base import Denoiser, Planner
from qvg_cli.models.self_forcing.config import BlockSamplerConfig, CheckpointModelConfig, SelfForcingConfig
from qvg_cli.models.wan.checkpoint import WEIGHTS_KEYS, Checkpoint, open_wan, read_published
from qvg_cli.models.wan.lora import open_loras
from qvg_cli.models.wan.pipeline import Models, WanPipeline
from qvg_cli.models.wan.schedule import denoising_steps
from qvg_cli.models.wan.transformer import CausalWanTransformer, TimestepSinusoid
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.cache_plan import Commit
from qvg_cli.planning.chunks import ChunkPlan, Frames


class SelfForcingTransformer(CausalWanTransformer):
    """The causal Wan transformer with the original's sinusoid of the timestep."""

    def adapt(self) -> None:
        self.condition_embedder.timesteps_proj = TimestepSinusoid(self.config.freq_dim)


class SelfForcingDenoiser(Denoiser):
    """A few calls a chunk, whose input is noised anew between them; the model has this video's cache.

    Args:
        prompt_embeds: `[B, text_tokens, C]`, zero rows after the prompt.
    """

    def __init__(
        self,
        model: SelfForcingTransformer,
        cache: KVCache,
        prompt_embeds: Tensor,
        sampler: BlockSamplerConfig,
    ) -> None:
        self.cache = cache
        self._model = model
        self._prompt_embeds = prompt_embeds
        self._steps = denoising_steps(sampler.steps, sampler.shift)
        self._first_steps = denoising_steps(sampler.first_chunk_steps or sampler.steps, sampler.shift)
        self._context_noise = sampler.context_noise
        self._call = model.attach(cache)

    @property
    def device(self) -> torch.device:
        return self._prompt_embeds.device

    def set_prompt(self, prompt_embeds: Tensor) -> None:
        if prompt_embeds is not self._prompt_embeds:
            self._prompt_embeds = prompt_embeds
            self._model.use(self._call)
            self._model.forget_text()

    def update_cache(self, chunk: ChunkPlan, frames: Frames, latents: Tensor, commit: Commit) -> None:
        # The input gets no noise, whatever the conditioning timestep.
        self._call.commit = commit
        self._predict_flow(latents, self._context_noise, chunk, frames)
        self._call.commit = None

    def denoise(
        self, chunk: ChunkPlan, draw_noise: Callable[[], Tensor], on_step: Callable[[], None]
    ) -> Tensor:
        latents = clean = draw_noise()
        steps = self._first_steps if chunk.is_first_made else self._steps
        for step, following in zip(steps, (*steps[1:], None), strict=True):
            flow = self._predict_flow(latents, step.timestep, chunk, chunk.makes)
            clean = step.clean(latents, flow)
            if following is not None:
                latents = following.renoise(clean, draw_noise())
            on_step()
        return clean

    @torch.no_grad()
    def _predict_flow(self, latents: Tensor, timestep: float, chunk: ChunkPlan, frames: Frames) -> Tensor:
        self._model.use(self._call)
        self._call.chunk, self._call.frames = chunk, frames
        timesteps = torch.full((latents.shape[0],), timestep, dtype=torch.float32, device=latents.device)
        return self._model(latents, timesteps, self._prompt_embeds, return_dict=False)[0]


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
    if config.uses_vae:
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
