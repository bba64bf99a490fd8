"""The loaded HY-WorldPlay family: a walk begins in a picture, and the VAE makes the latents as planned."""

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.errors import MissingModelError
from qvg_cli.models.base import Planner
from qvg_cli.models.hyworldplay.config import HyWorldPlayConfig
from qvg_cli.models.hyworldplay.denoiser import HyWorldPlayDenoiser
from qvg_cli.models.hyworldplay.model import WalkTransformer
from qvg_cli.models.hyworldplay.plan import WalkPlanner
from qvg_cli.models.wan.checkpoint import open_wan
from qvg_cli.models.wan.pipeline import Models, WanPipeline
from qvg_cli.video.picture import fill_frame, open_image


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
