"""The Self-Forcing model, and one video in the making: a few calls a chunk, then the cache-update pass.

Source: guandeh17/Self-Forcing at 33593df, `pipeline/causal_inference.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.models.base import Denoiser
from qvg_cli.models.self_forcing.config import BlockSamplerConfig
from qvg_cli.models.wan.schedule import denoising_steps
from qvg_cli.models.wan.transformer import CausalWanTransformer, TimestepSinusoid
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
        self._call.chunk, self._call.frames = chunk, frames
        timesteps = torch.full((latents.shape[0],), timestep, dtype=torch.float32, device=latents.device)
        return self._model(latents, timesteps, self._prompt_embeds, return_dict=False)[0]
