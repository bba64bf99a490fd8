"""The loaded LongCat-Video family, and one video in the making: a base clip, then segments after it.

The condition frames of a segment pass through the model once, without text, and leave the cache that all its
steps and both rows of the guidance read.

Source: meituan-longcat/LongCat-Video, `longcat_video/pipeline_longcat_video.py`, `generate_t2v` and
`generate_vc`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.errors import UsageError
from qvg_cli.models.base import Denoiser, Planner
from qvg_cli.models.decoder import Decoder, WrappedDecoder
from qvg_cli.models.longcat.config import LongCatConfig
from qvg_cli.models.longcat.layers import ProjectedPrompt
from qvg_cli.models.longcat.model import LongCatTransformer, open_longcat
from qvg_cli.models.longcat.schedule import Sampling, Step, guide, sampling_of
from qvg_cli.models.longcat.window import WindowDecoder
from qvg_cli.models.parallel import Rows
from qvg_cli.models.wan.checkpoint import Checkpoint
from qvg_cli.models.wan.lora import Lora
from qvg_cli.models.wan.pipeline import Models, WanPipeline
from qvg_cli.models.wan.transformer import Call
from qvg_cli.planning.cache_forecast import CacheShape
from qvg_cli.planning.cache_plan import Commit
from qvg_cli.planning.chunks import ChunkPlan, Frames


class LongCatDenoiser(Denoiser):
    """Many guided steps a clip, or few distilled ones.

    Args:
        prompt_embeds: `[1, N, C]`, or `[2, N, C]` for guidance: the negative prompt, then the prompt.
    """

    observes_steps = False

    def __init__(
        self,
        model: LongCatTransformer,
        cache: KVCache,
        prompt_embeds: Tensor,
        sampling: Sampling,
        rows: Rows | None = None,
    ) -> None:
        self.cache = cache
        self._model = model
        self._sampling = sampling
        self._rows = rows or Rows()
        self._prompt_embeds: Tensor | None = None
        self.set_prompt(prompt_embeds)

    @property
    def device(self) -> torch.device:
        return self._model.device

    def set_prompt(self, prompt_embeds: Tensor) -> None:
        if prompt_embeds is not self._prompt_embeds:
            self._prompt_embeds = prompt_embeds
            # The encoder's states are zero after the prompt and nowhere else.
            self._text = self._model.embed_text(prompt_embeds, prompt_embeds.any(dim=-1))

    def update_cache(self, chunk: ChunkPlan, frames: Frames, latents: Tensor, commit: Commit) -> None:
        # Frames attend to each other and to no text; the prediction itself is of no use.
        call = Call(chunk, frames, commit, self._rows.together or self._model.tokens)
        timesteps = latents.new_zeros(latents.shape[0], len(frames), dtype=torch.float32)
        self._model(latents, timesteps, None, call, self.cache.layers)

    def denoise(
        self, chunk: ChunkPlan, draw_noise: Callable[[], Tensor], on_step: Callable[[], None]
    ) -> Tensor:
        # Latents are float32 between the steps.
        call = Call(chunk, chunk.makes, tokens=self._model.tokens)
        latents = draw_noise().float()
        for step in self._sampling.schedule(chunk):
            latents = step.advance(latents, self._predict_flow(latents, step, self._text, call))
            on_step()
        return latents

    def _predict_flow(self, latents: Tensor, step: Step, text: ProjectedPrompt, call: Call) -> Tensor:
        """`clean - noise` of `[1, C, F, h, w]` latents, guided if there are two rows of text."""
        num_rows = text.states.shape[0]

        def predict(rows: slice) -> Tensor:
            count = len(range(num_rows)[rows])
            timesteps = latents.new_full((count, len(call.frames)), step.timestep)
            expanded = latents.expand(count, -1, -1, -1, -1)
            return self._model(expanded, timesteps, text[rows], call, self.cache.layers)

        flow = self._rows.compute(predict, num_rows)
        return guide(flow, self._sampling.guidance) if num_rows == 2 else flow


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
