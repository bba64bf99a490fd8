"""An open-ended video: one step makes one chunk, from the prompt and the pose that the step is given."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from numpy import float64
from numpy.typing import NDArray
from torch import Tensor

from qvg_cli.cache.kv_cache import open_cache
from qvg_cli.config.schema import PromptChange, RunConfig
from qvg_cli.engine.lengths import with_video
from qvg_cli.engine.opening import open_video
from qvg_cli.engine.rollout import Done, rollout, seeded_noise
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.models.base import Pipeline, Planner
from qvg_cli.planning.chunks import ChunkPlan, pixel_frames
from qvg_cli.planning.ledger import MemorySample
from qvg_cli.video.io import Frames


@dataclass(frozen=True, eq=False)
class Chunk:
    """What one step has made: `[n, height, width, 3]` uint8 pixels, `[1, C, F, h, w]` latents on the CPU."""

    plan: ChunkPlan
    frames: Frames
    latents: Tensor
    memory: MemorySample
    seconds: float


class Session:
    """A video without an end. A step that fails ends it; what was made before stays valid.

    Args:
        config: Its prompt is that of the first chunk.
        turn: Held by each step; who else uses the model holds it too.
        made: Latents `[1, C, F, h, w]` of the whole video of `config`, to go on from; `None` begins it.
        on_step: Called after every model call; what it raises ends the session.

    Attributes:
        num_frames: Pixel frames made so far.
    """

    def __init__(
        self,
        config: RunConfig,
        pipeline: Pipeline,
        planner: Planner,
        turn: AbstractContextManager[object],
        *,
        made: Tensor | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.num_frames = 0
        self._config = config
        self._pipeline = pipeline
        self._planner = planner
        self._turn = turn
        self._planned: deque[ChunkPlan] = deque()
        self._num_chunks = 0
        self._num_latents = 0
        self._prompt = self._first_prompt = config.prompt
        self._changes: list[PromptChange] = []
        self._prompts = {0: pipeline.encode_prompt(config.prompt)}
        self._on_frames: Callable[[Frames], None] = lambda frames: None
        geometry = planner.geometry
        cache = open_cache(config.cache, geometry, pipeline.cache_shape, config.seed)
        denoiser = pipeline.denoiser(cache, planner, self._prompts[0], config.seed)
        opening = open_video(config, geometry, pipeline, denoiser.device, lambda frames: None)
        done = None
        if made is not None:
            # The history is computed again, by the passes that made it.
            done = Done(self._plan_made(made.shape[2]), made.to(denoiser.device), has_history=False)
            self.num_frames = pixel_frames(made.shape[2])
        self._results = rollout(
            self._take_planned(),
            denoiser,
            opening.decoder,
            seeded_noise(geometry, config.seed, pipeline.latents_dtype, denoiser.device),
            prompt_at=lambda index: self._prompts[max(begin for begin in self._prompts if begin <= index)],
            context=opening.context,
            num_shown=opening.num_shown,
            done=done,
            on_step=on_step,
            on_frames=lambda frames: self._on_frames(frames[0].numpy()),
        )

    @property
    def config(self) -> RunConfig:
        """The settings with which `Engine.generate` makes the same video, as long as it is now."""
        prompts = {"prompt": self._first_prompt, "prompt_changes": tuple(self._changes)}
        config = with_video(self._config.model_copy(update=prompts), frames=max(1, self._num_latents))
        return self._planner.with_path(config)

    @property
    def prompt(self) -> str:
        """What the video shows now."""
        return self._prompt

    @property
    def viewmats(self) -> NDArray[float64] | None:
        """`[F, 4, 4]` world to camera along the path so far; `None` for a model without a camera."""
        return self._planner.viewmats

    def step(
        self,
        *,
        prompt: str | None = None,
        pose: str | None = None,
        on_frames: Callable[[Frames], None] = lambda frames: None,
    ) -> Chunk:
        """Make the next chunk.

        Args:
            prompt: What the video shows from this chunk on; `None` goes on with the last one.
            pose: How the camera moves, such as "w-4", for a model that has one.
            on_frames: Called with `[n, height, width, 3]` uint8 pixels of the chunk, as soon as they are
                decoded.

        Raises:
            UsageError: The model cannot go on so; nothing was made, and another step may follow.
            QvgError: The session has failed before.
        """
        with self._turn:
            return self._step(prompt, pose, on_frames)

    def _step(self, prompt: str | None, pose: str | None, on_frames: Callable[[Frames], None]) -> Chunk:
        began = time.perf_counter()
        chunks = self._plan_next(prompt, pose)
        self._planned.extend(chunks)
        self._on_frames = on_frames
        results = [result for _, result in zip(chunks, self._results, strict=False)]
        if len(results) < len(chunks):
            raise QvgError("the session has ended with an error", hint="start a new one")
        frames = torch.cat([result.frames for result in results], dim=1)[0].numpy()
        self.num_frames += len(frames)
        return Chunk(
            results[-1].chunk,
            frames,
            torch.cat([result.latents for result in results], dim=2).cpu(),
            results[-1].memory,
            time.perf_counter() - began,
        )

    def _plan_next(self, prompt: str | None, pose: str | None) -> tuple[ChunkPlan, ...]:
        prompt = self._prompt if prompt is None else prompt
        is_new, is_first = prompt != self._prompt, self._num_chunks == 0
        # First what may fail: the planner does not go back.
        embeds = self._pipeline.encode_prompt(prompt) if is_new else None
        chunks = self._planner.next(pose=pose, is_new_prompt=is_new and not is_first)
        if embeds is not None:
            self._prompts[chunks[0].index] = embeds
            self._prompt = prompt
            if is_first:
                self._first_prompt = prompt
            else:
                begin = self._planner.geometry.first_pixel_frame(chunks[-1])
                self._changes.append(PromptChange(frame=begin, prompt=prompt))
        self._num_chunks += len(chunks)
        self._num_latents = max(chunks[-1].frames) + 1
        return chunks

    def _plan_made(self, num_latents: int) -> list[ChunkPlan]:
        """The chunks of the video that is there."""
        config = self._config
        self._planner.follow(config)
        later = {change.frame: change.prompt for change in config.prompt_changes}
        chunks: list[ChunkPlan] = []
        while self._num_latents < num_latents:
            begin = pixel_frames(self._num_latents)
            chunks.extend(self._plan_next(later.pop(begin, None), None))
        if self._num_latents > num_latents or later:
            raise UsageError(
                f"the video of {num_latents} latent frames does not end, or change its prompt, with a chunk"
            )
        return chunks

    def _take_planned(self) -> Iterator[ChunkPlan]:
        while self._planned:
            yield self._planned.popleft()
