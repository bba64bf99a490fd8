"""One Self-Forcing video in the making: four denoising calls a block, then the pass that fills the cache.

Source: guandeh17/Self-Forcing at 33593df, `pipeline/causal_inference.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.models.base import NO_CHANGES
from qvg_cli.models.self_forcing.config import BlockSamplerConfig
from qvg_cli.models.self_forcing.model import attach, forget_text
from qvg_cli.models.self_forcing.schedule import denoising_steps
from qvg_cli.planning.cache_plan import Frames
from qvg_cli.planning.chunks import ChunkPlan


class SelfForcingSession:
    """See `qvg_cli.models.base.Session`.

    Args:
        model: Prepared transformer; this session's cache and prompt are attached to it.
        prompt_embeds: `[B, text_tokens, C]`, zero rows after the prompt.
        changes: The same of later prompts, by the chunk that each begins with; the history stays as it is.
    """

    def __init__(
        self,
        model: WanTransformer3DModel,
        cache: KVCache,
        prompt_embeds: Tensor,
        sampler: BlockSamplerConfig,
        changes: Mapping[int, Tensor] = NO_CHANGES,
    ) -> None:
        self.cache = cache
        self._model = model
        self._prompt_embeds = prompt_embeds
        self._prompts = {0: prompt_embeds, **changes}
        self._steps = denoising_steps(sampler)
        self._context_noise = sampler.context_noise
        self._call = attach(model, cache)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._prompt_embeds.device

    def clean_pass(self, chunk: ChunkPlan, frames: Frames, latents: Tensor) -> None:
        """See `Session.clean_pass`. The input gets no noise, whatever timestep the model is told."""
        self._turn_to(chunk)
        self._call.packs = self.cache.packs(chunk)
        self._predict_flow(latents, self._context_noise, frames, chunk.reads)
        self._call.packs = None
        self.cache.commit(frames)

    def denoise(
        self, chunk: ChunkPlan, draw_noise: Callable[[], Tensor], on_step: Callable[[], None]
    ) -> Tensor:
        """See `Session.denoise`."""
        self._turn_to(chunk)
        latents = clean = draw_noise()
        for step, following in zip(self._steps, (*self._steps[1:], None), strict=True):
            flow = self._predict_flow(latents, step.timestep, chunk.makes, chunk.reads)
            clean = step.clean(latents, flow)
            if following is not None:
                latents = following.renoise(clean, draw_noise())
            on_step()
        return clean

    def _turn_to(self, chunk: ChunkPlan) -> None:
        """Let the model read the prompt of `chunk`."""
        prompt_embeds = self._prompts[max(begin for begin in self._prompts if begin <= chunk.index)]
        if prompt_embeds is not self._prompt_embeds:
            self._prompt_embeds = prompt_embeds
            forget_text(self._model)

    @torch.no_grad()
    def _predict_flow(self, latents: Tensor, timestep: float, frames: Frames, reads: Frames) -> Tensor:
        self._call.frames = frames
        self._call.reads = reads
        timesteps = torch.full((latents.shape[0],), timestep, dtype=torch.float32, device=latents.device)
        flow: Tensor = self._model(latents, timesteps, self._prompt_embeds, return_dict=False)[0]
        return flow
