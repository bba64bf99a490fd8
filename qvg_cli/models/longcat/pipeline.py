"""The loaded LongCat-Video family: two rows a step with guidance, or an adapter; windows decoded anew."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.errors import UsageError
from qvg_cli.models.base import Planner
from qvg_cli.models.decoder import Decoder, WrappedDecoder
from qvg_cli.models.longcat.config import LongCatConfig
from qvg_cli.models.longcat.denoiser import LongCatDenoiser
from qvg_cli.models.longcat.model import LongCatTransformer, open_longcat
from qvg_cli.models.longcat.schedule import sampling_of
from qvg_cli.models.longcat.window import WindowDecoder
from qvg_cli.models.wan.checkpoint import Checkpoint
from qvg_cli.models.wan.lora import Lora
from qvg_cli.models.wan.pipeline import Models, WanPipeline
from qvg_cli.planning.cache_forecast import CacheShape

DISTILLED_ADAPTER = "lora/cfg_step_lora.safetensors"


class LongCatPipeline(WanPipeline[LongCatConfig, LongCatTransformer]):
    """Latents are float32 between the steps; clips are drawn from the encoder's posterior."""

    clip_purpose = "clip"

    def with_config(self, config: LongCatConfig) -> Self:
        # Another mode has other weights.
        if (mode := config.sampler.mode) != self._config.sampler.mode:
            hint = "set it when the model is loaded"
            raise UsageError(f"sampler.mode={mode} needs other weights than those loaded", hint=hint)
        return super().with_config(config)

    def whole_cache(self) -> CacheShape:
        # Both rows of the guidance share one row of cache.
        model = self._models.transformer.config
        return CacheShape(model.depth, model.num_heads, model.head_dim)

    def texts(self, prompt: str) -> list[str]:
        """With guidance, the negative prompt and then the prompt."""
        sampler = self._config.sampler
        return [sampler.negative_prompt, prompt] if sampler.is_guided else [prompt]

    def denoiser(self, cache: KVCache, planner: Planner, prompt_embeds: Tensor, seed: int) -> LongCatDenoiser:
        sampling = sampling_of(self._config.sampler)
        return LongCatDenoiser(self._models.transformer, cache, prompt_embeds, sampling, self._models.rows)

    def decoder(self) -> Decoder:
        condition_frames = self._config.sampler.condition_frames
        decoder = WindowDecoder(self._models.vae, condition_frames, self.open_decoder)
        return WrappedDecoder(decoder, self._models.offload.pixels)


def load_pipeline(config: LongCatConfig, device: torch.device) -> LongCatPipeline:
    """Load the weights that `config` names; `MissingModelError` if a part is missing or broken."""

    def open_checkpoint(weights: Path) -> Checkpoint[LongCatTransformer]:
        hint = "download it with qvg download longcat, or use sampler.mode=guided, which needs none"
        is_distilled = config.sampler.mode == "distilled"
        adapters = [Lora(weights / DISTILLED_ADAPTER, hint=hint)] if is_distilled else []
        return open_longcat(weights / "dit", adapters)

    models = Models(config, device, open_checkpoint)
    # Read at once, being small: what is missing or broken is found before a prompt is encoded.
    _ = models.vae
    return LongCatPipeline(config, models)
