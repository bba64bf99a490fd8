"""One LongCat video in the making: a base clip from noise, then segments that go on from condition frames.

The condition frames of a segment pass through the model once, without text, and leave the cache that all its
steps and both rows of the guidance read.

Source: meituan-longcat/LongCat-Video, `longcat_video/pipeline_longcat_video.py`, `generate_t2v` and
`generate_vc`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.models.base import Denoiser
from qvg_cli.models.longcat.layers import ProjectedPrompt
from qvg_cli.models.longcat.model import LongCatTransformer
from qvg_cli.models.longcat.schedule import Sampling, Step, guide
from qvg_cli.models.parallel import Rows
from qvg_cli.models.wan.transformer import Call
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
