"""One LongCat video in the making: a base clip from noise, then segments that go on from condition frames.

The condition frames of a segment pass through the model once, without text, and leave the cache that all its
steps and both rows of the guidance read.

Source: meituan-longcat/LongCat-Video, `longcat_video/pipeline_longcat_video.py`, `generate_t2v` and
`generate_vc`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.models.base import AllRows, Rows
from qvg_cli.models.longcat.layers import Call, TextStates
from qvg_cli.models.longcat.model import LongCatTransformer
from qvg_cli.models.longcat.schedule import Sampling, Step, guide
from qvg_cli.planning.cache_plan import Frames
from qvg_cli.planning.chunks import ChunkPlan


class LongCatSession:
    """See `qvg_cli.models.base.Session`.

    Args:
        text: One row, or two for guidance: the negative prompt, then the prompt.
        changes: The same of later prompts, by the chunk that each begins with.
        rows: Who computes them.
    """

    def __init__(
        self,
        model: LongCatTransformer,
        cache: KVCache,
        text: TextStates,
        sampling: Sampling,
        changes: Mapping[int, TextStates] = MappingProxyType({}),
        rows: Rows | None = None,
    ) -> None:
        self.cache = cache
        self._model = model
        self._texts = {0: text, **changes}
        self._sampling = sampling
        self._rows = rows or AllRows()

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._model.device

    def clean_pass(self, chunk: ChunkPlan, frames: Frames, latents: Tensor) -> None:
        """See `Session.clean_pass`. Frames attend to each other; the prediction itself is of no use."""
        call = Call(self.cache.layers, frames, packs=self.cache.packs(chunk), first_frame=frames[0])
        timesteps = latents.new_zeros(latents.shape[0], len(frames), dtype=torch.float32)
        self._model(latents, timesteps, None, call)
        self.cache.commit(frames)

    def denoise(
        self, chunk: ChunkPlan, draw_noise: Callable[[], Tensor], on_step: Callable[[], None]
    ) -> Tensor:
        """See `Session.denoise`. Latents are float32 between the steps."""
        first_frame = (chunk.reads or chunk.makes)[0]
        call = Call(self.cache.layers, chunk.makes, chunk.reads, first_frame=first_frame)
        latents = draw_noise().float()
        text = self._texts[max(begin for begin in self._texts if begin <= chunk.index)]
        for step in self._sampling.schedule(chunk):
            latents = step.advance(latents, self._predict_flow(latents, step, text, call))
            on_step()
        return latents

    def _predict_flow(self, latents: Tensor, step: Step, text: TextStates, call: Call) -> Tensor:
        """`clean - noise` of `[1, C, F, h, w]` latents, guided if there are two rows of text."""
        num_rows = text.states.shape[0]

        def predict(rows: slice) -> Tensor:
            count = len(range(num_rows)[rows])
            timesteps = latents.new_full((count, len(call.frames)), step.timestep)
            flow: Tensor = self._model(latents.expand(count, -1, -1, -1, -1), timesteps, text[rows], call)
            return flow

        flow = self._rows.compute(predict, num_rows)
        return guide(flow, self._sampling.guidance) if num_rows == 2 else flow
