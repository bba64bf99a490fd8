"""One walk in the making: the history passes through the model as the plan says, then four steps a chunk.

Source: Tencent-Hunyuan/HY-WorldPlay, `wan/inference`. The state between steps stays float32; the reference
rounds it to bf16 at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.models.hyworldplay.config import WalkSamplerConfig
from qvg_cli.models.hyworldplay.model import attach
from qvg_cli.models.hyworldplay.schedule import denoising_steps
from qvg_cli.models.hyworldplay.streams import Cameras
from qvg_cli.models.hyworldplay.trajectory import Trajectory
from qvg_cli.planning.cache_plan import Frames
from qvg_cli.planning.chunks import ChunkPlan, VideoPlan


class HyWorldPlaySession:
    """See `qvg_cli.models.base.Session`.

    Args:
        model: Prepared transformer; this session's cache, cameras and prompt are attached to it.
        prompt_embeds: `[B, text_tokens, C]`, zero rows after the prompt.
        path: One pose a latent frame of the plan.
        image_latents: `[B, C, 1, h, w]` that frame 0 is; none leaves it to the model.
    """

    def __init__(
        self,
        model: WanTransformer3DModel,
        cache: KVCache,
        prompt_embeds: Tensor,
        sampler: WalkSamplerConfig,
        plan: VideoPlan,
        path: Trajectory,
        image_latents: Tensor | None,
    ) -> None:
        self.cache = cache
        self._model = model
        self._prompt_embeds = prompt_embeds
        self._steps = denoising_steps(sampler)
        self._context_noise = sampler.context_noise
        self._actions = path.actions
        self._image_latents = image_latents
        self._call = attach(model, cache, Cameras.of(path, plan.tokens_per_frame, self.device))

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._prompt_embeds.device

    def clean_pass(self, chunk: ChunkPlan, frames: Frames, latents: Tensor) -> None:
        """See `Session.clean_pass`. The input gets no noise, whatever timestep the model is told.

        Frames of the history that pass through the model again are not read from the cache.
        """
        reads = tuple(frame for frame in chunk.reads if frame not in frames)
        self._call.keeps, self._call.packs = chunk.commits, self.cache.packs(chunk)
        self._predict_flow(latents, [self._context_noise] * len(frames), frames, reads)
        self._call.keeps = ()
        self.cache.commit(chunk.commits)

    def denoise(
        self, chunk: ChunkPlan, draw_noise: Callable[[], Tensor], on_step: Callable[[], None]
    ) -> Tensor:
        """See `Session.denoise`. A given first frame is told as context and never moved."""
        latents = draw_noise().float()
        given = self._image_latents if 0 in chunk.makes else None
        num_given = 0
        if given is not None:
            num_given = given.shape[2]
            latents = torch.cat([given.to(latents), latents[:, :, num_given:]], dim=2)
        sigmas = [*(step.sigma for step in self._steps), 0.0]
        for step, following in zip(self._steps, sigmas[1:], strict=True):
            told = [self._context_noise] * num_given + [step.timestep] * (len(chunk.makes) - num_given)
            flow = self._predict_flow(latents, told, chunk.makes, chunk.reads)
            moved = latents + (following - step.sigma) * flow
            latents = torch.cat([latents[:, :, :num_given], moved[:, :, num_given:]], dim=2)
            on_step()
        return latents

    @torch.no_grad()
    def _predict_flow(self, latents: Tensor, timesteps: list[float], frames: Frames, reads: Frames) -> Tensor:
        """Flow `[B, C, F, h, w]` float32 of latents of `frames`, each with its own timestep."""
        batch = latents.shape[0]
        self._call.frames, self._call.reads = frames, reads
        self._call.actions = self._to_device([self._actions[frame] for frame in frames]).repeat(batch)
        # Each frame is an item of the batch, with its own timestep and action: [B * F, C, 1, h, w].
        items = latents.to(self._prompt_embeds.dtype).transpose(1, 2).flatten(0, 1).unsqueeze(2)
        told = self._to_device(timesteps).repeat(batch)
        flow: Tensor = self._model(items, told, self._prompt_embeds, return_dict=False)[0]
        video: Tensor = flow.squeeze(2).unflatten(0, (batch, len(frames)))
        return video.transpose(1, 2).float()

    def _to_device(self, numbers: Sequence[float]) -> Tensor:
        """`[N]` float32, without waiting for what the device has to do before."""
        return torch.tensor(numbers, dtype=torch.float32).to(self.device, non_blocking=True)
