"""The loaded HY-WorldPlay family, and one walk in the making: a picture to begin in, then four steps a chunk.

The history passes through the model as the plan says. The state between steps stays float32; the reference
rounds it to bf16 at every step.

Source: Tencent-Hunyuan/HY-WorldPlay, `wan/inference`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.config.schema import SamplerConfig
from qvg_cli.errors import MissingModelError
from qvg_cli.models.base import Denoiser, Planner
from qvg_cli.models.hyworldplay.config import HyWorldPlayConfig, WalkSamplerConfig
from qvg_cli.models.hyworldplay.model import Cameras, WalkTransformer
from qvg_cli.models.hyworldplay.plan import WalkPlanner
from qvg_cli.models.hyworldplay.trajectory import Trajectory
from qvg_cli.models.wan.checkpoint import open_wan
from qvg_cli.models.wan.pipeline import Models, WanPipeline
from qvg_cli.models.wan.schedule import NUM_TRAIN_TIMESTEPS, Step
from qvg_cli.planning.cache_plan import Commit
from qvg_cli.planning.chunks import ChunkPlan, Frames
from qvg_cli.video.picture import fill_frame, open_image

PUBLISHED_TIMESTEPS = (1000.0, 960.0, 888.8889, 727.2728)
"""Shift 8 on 1000, 750, 500, 250, in four digits. The last one is 7e-5 above the exact value, which the
timestep's fastest sinusoid turns into 1e-4 of the output."""
_DIGIT = 1e-4


def denoising_steps(sampler: SamplerConfig) -> tuple[Step, ...]:
    """The steps of a chunk, noisiest first: `sigma = shift * u / (1 + (shift - 1) * u)`, `u = step / 1000`.

    A timestep that is a published one but for its last digit becomes that one.
    """
    found = []
    for step in sampler.steps:
        fraction, shift = step / NUM_TRAIN_TIMESTEPS, sampler.shift
        exact = NUM_TRAIN_TIMESTEPS * shift * fraction / (1 + (shift - 1) * fraction)
        timestep = next((known for known in PUBLISHED_TIMESTEPS if abs(known - exact) < _DIGIT), exact)
        sigma = np.float32(timestep / NUM_TRAIN_TIMESTEPS)
        found.append(Step(timestep=float(np.float32(timestep)), sigma=float(sigma)))
    return tuple(found)


class HyWorldPlayDenoiser(Denoiser):
    """Four calls a chunk along the camera's path, whose latents move towards the clean ones.

    Args:
        model: This walk's cache, cameras and prompt are attached to it.
        prompt_embeds: `[B, text_tokens, C]`, zero rows after the prompt.
        path: The camera's path as far as it is known when a chunk begins.
        image_latents: `[B, C, 1, h, w]` of frame 0; `None` leaves it to the model.
    """

    def __init__(
        self,
        model: WalkTransformer,
        cache: KVCache,
        prompt_embeds: Tensor,
        sampler: WalkSamplerConfig,
        path: Callable[[], Trajectory],
        tokens_per_frame: int,
        image_latents: Tensor | None,
    ) -> None:
        self.cache = cache
        self._model = model
        self._prompt_embeds = prompt_embeds
        self._steps = denoising_steps(sampler)
        self._context_noise = sampler.context_noise
        self._path = path
        self._tokens_per_frame = tokens_per_frame
        self._num_poses = 0
        self._image_latents = image_latents
        self._call = model.attach(cache)

    @property
    def device(self) -> torch.device:
        return self._prompt_embeds.device

    def set_prompt(self, prompt_embeds: Tensor) -> None:
        assert prompt_embeds is self._prompt_embeds, "the plan refuses changes of the prompt"

    def update_cache(self, chunk: ChunkPlan, frames: Frames, latents: Tensor, commit: Commit) -> None:
        # The input gets no noise, whatever the conditioning timestep.
        self._call.commit = commit
        self._predict_flow(latents, [self._context_noise] * len(frames), chunk, frames)
        self._call.commit = None

    def denoise(
        self, chunk: ChunkPlan, draw_noise: Callable[[], Tensor], on_step: Callable[[], None]
    ) -> Tensor:
        # A given first frame has the timestep of the context and never moves.
        latents = draw_noise().float()
        num_given = 0
        if self._image_latents is not None and 0 in chunk.makes:
            num_given = self._image_latents.shape[2]
            latents = torch.cat([self._image_latents.to(latents), latents[:, :, num_given:]], dim=2)
        sigmas = [*(step.sigma for step in self._steps), 0.0]
        for step, following in zip(self._steps, sigmas[1:], strict=True):
            timesteps = [self._context_noise] * num_given + [step.timestep] * (len(chunk.makes) - num_given)
            flow = self._predict_flow(latents, timesteps, chunk, chunk.makes)
            moved = latents + (following - step.sigma) * flow
            latents = torch.cat([latents[:, :, :num_given], moved[:, :, num_given:]], dim=2)
            on_step()
        return latents

    @torch.no_grad()
    def _predict_flow(
        self, latents: Tensor, timesteps: list[float], chunk: ChunkPlan, frames: Frames
    ) -> Tensor:
        """Flow `[B, C, F, h, w]` float32 of latents of `frames`, each with its own timestep."""
        batch = latents.shape[0]
        path = self._path()
        if len(path) != self._num_poses:
            self._num_poses = len(path)
            self._call.cameras = Cameras.of(path, self._tokens_per_frame, self.device)
        self._model.use(self._call)
        self._call.chunk, self._call.frames = chunk, frames
        self._call.actions = self._to_device([path.actions[frame] for frame in frames]).repeat(batch)
        # Each frame is an item of the batch, with its own timestep and action: [B * F, C, 1, h, w].
        items = latents.to(self._prompt_embeds.dtype).transpose(1, 2).flatten(0, 1).unsqueeze(2)
        conditioning = self._to_device(timesteps).repeat(batch)
        flow = self._model(items, conditioning, self._prompt_embeds, return_dict=False)[0]
        return flow.squeeze(2).unflatten(0, (batch, len(frames))).transpose(1, 2).float()

    def _to_device(self, numbers: Sequence[float]) -> Tensor:
        """`[N]` float32, without waiting for what the device has to do before."""
        return torch.tensor(numbers, dtype=torch.float32).to(self.device, non_blocking=True)


class WalkModels(Models[WalkTransformer]):
    """Its parts are read when they are first needed; `MissingModelError` if the folder lacks a part."""

    def __init__(self, config: HyWorldPlayConfig, device: torch.device) -> None:
        self._config = config.model
        super().__init__(
            config, device, lambda weights: open_wan(WalkTransformer, weights / config.model.transformer)
        )
        for part in ("vae", "text_encoder", "tokenizer"):
            if not (self.weights / part).is_dir():
                raise MissingModelError(f"{self.weights} has no folder {part}")

    def read_vae(self) -> AutoencoderKLWan:
        """The VAE in CPU memory, checked against the configuration."""
        vae = super().read_vae()
        found = vae.config.z_dim, vae.config.scale_factor_spatial
        if found != (self._config.latent_channels, self._config.spatial_factor):
            raise MissingModelError(
                f"the VAE of {self.weights} makes {found[0]} channels, each {found[1]} pixels to a side",
                hint="set model.latent_channels and model.spatial_factor to these",
            )
        return vae


class HyWorldPlayPipeline(WanPipeline[HyWorldPlayConfig, WalkTransformer]):
    """Latents are float32 between the steps; the first picture is drawn from the encoder's posterior."""

    clip_purpose = "image"

    def denoiser(
        self, cache: KVCache, planner: Planner, prompt_embeds: Tensor, seed: int
    ) -> HyWorldPlayDenoiser:
        assert isinstance(planner, WalkPlanner)
        image_latents = None
        if self._config.walk.image is not None:
            video = self._config.video
            picture = open_image(self._config.walk.image)
            pixels = fill_frame(picture, height=video.height, width=video.width)
            frame = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None, :, None]
            image_latents = self.encode_frames(frame, seed).repeat(len(prompt_embeds), 1, 1, 1, 1)
        return HyWorldPlayDenoiser(
            self._models.transformer,
            cache,
            prompt_embeds,
            self._config.sampler,
            lambda: planner.path,
            planner.geometry.tokens_per_frame,
            image_latents,
        )
