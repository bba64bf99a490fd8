"""An open-ended video: one step makes one chunk, from the prompt and the pose that the step is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config.schema import RunConfig
from qvg_cli.engine.noise import SeededNoise
from qvg_cli.engine.opening import open_video
from qvg_cli.engine.rollout import rollout
from qvg_cli.errors import QvgError
from qvg_cli.planning.chunks import ChunkPlan
from qvg_cli.planning.ledger import MemorySample

if TYPE_CHECKING:
    from qvg_cli.models.base import Pipeline, Planner
    from qvg_cli.video.io import Frames


@dataclass(frozen=True, eq=False)
class Chunk:
    """What one step has made.

    Attributes:
        plan: Which latent frames it made, from which it read.
        frames: `[n, height, width, 3]` uint8 pixels.
        latents: `[1, C, F, h, w]`, on the CPU.
        memory: The cache around this chunk.
        seconds: From the step's call to its pixels.
    """

    plan: ChunkPlan
    frames: Frames
    latents: Tensor
    memory: MemorySample
    seconds: float


class Session:
    """A video without an end. A step that fails ends it; what was made before stays valid.

    Args:
        config: Its prompt is that of the first chunk.
        planner: Plans the chunks as they are asked for.

    Attributes:
        num_frames: Pixel frames made so far.
    """

    def __init__(self, config: RunConfig, pipeline: Pipeline, planner: Planner) -> None:
        self.num_frames = 0
        self._config = config
        self._pipeline = pipeline
        self._planner = planner
        self._planned: deque[ChunkPlan] = deque()
        self._prompt = config.prompt
        self._prompts = {0: pipeline.encode_prompt(config.prompt)}
        geometry = planner.geometry
        cache = open_cache(config.cache, geometry, pipeline.cache_shape, config.seed)
        denoiser = pipeline.denoiser(cache, planner, self._prompts[0], config.seed)
        opening = open_video(config, geometry, pipeline, denoiser.device, lambda frames: None)
        self._num_chunks = 0
        self._results = rollout(
            self._take_planned(),
            denoiser,
            opening.decoder,
            SeededNoise(geometry, config.seed, pipeline.latents_dtype, denoiser.device),
            prompt_at=lambda index: self._prompts[max(begin for begin in self._prompts if begin <= index)],
            context=opening.context,
            num_shown=opening.num_shown,
        )

    def step(self, *, prompt: str | None = None, pose: str | None = None) -> Chunk:
        """Make the next chunk.

        Args:
            prompt: What the video shows from this chunk on; `None` goes on with the last one.
            pose: How the camera moves, such as "w-4", for a model that has one.

        Raises:
            UsageError: The model cannot go on so; nothing was made, and another step may follow.
            QvgError: The session has failed before.
        """
        is_new_prompt = prompt is not None and prompt != self._prompt and self._num_chunks > 0
        chunks = self._planner.next(pose=pose, is_new_prompt=is_new_prompt)
        if prompt is not None and prompt != self._prompt:
            self._prompts[chunks[0].index] = self._pipeline.encode_prompt(prompt)
            self._prompt = prompt
        self._planned.extend(chunks)
        results = [result for _, result in zip(chunks, self._results, strict=False)]
        if len(results) < len(chunks):
            raise QvgError("the session has ended with an error", hint="begin a new one")
        self._num_chunks += len(chunks)
        frames = torch.cat([result.frames for result in results], dim=1)[0].numpy()
        self.num_frames += len(frames)
        return Chunk(
            results[-1].chunk,
            frames,
            torch.cat([result.latents for result in results], dim=2).cpu(),
            results[-1].memory,
            sum(result.seconds for result in results),
        )

    def _take_planned(self) -> Iterator[ChunkPlan]:
        while self._planned:
            yield self._planned.popleft()
