"""The noise levels of a segment, the Euler step between them and the guidance of a step.

Every level is warped by the shift of flow matching, `sigma = shift * u / (1 + (shift - 1) * u)`; the
conditioning timestep is `1000 * sigma`. Tables are float32, computed as the published ones are: a model in
bf16 rounds timesteps, and one unit in the last place can move a value to its neighbour.

Source: meituan-longcat/LongCat-Video, `longcat_video/pipeline_longcat_video.py`, `get_timesteps_sigmas` and
`optimized_scale`; shift 12 from the checkpoint's `scheduler/scheduler_config.json`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvg_cli.models.longcat.config import WindowSamplerConfig
from qvg_cli.planning.chunks import ChunkPlan

NUM_TRAIN_TIMESTEPS = 1000
TAIL_START = 500
TAIL_STEP = 50
_LAST_LEVEL = 0.001
_Levels = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """One denoising step: the conditioning timestep, and the noise level before and after."""

    timestep: float
    sigma: float
    next_sigma: float

    def advance(self, latents: Tensor, flow: Tensor) -> Tensor:
        """The Euler step from noise level `sigma` along the model's `clean - noise`, float32."""
        return latents + (self.next_sigma - self.sigma) * -flow.float()


@dataclass(frozen=True, eq=False)
class Schedule:
    """Timesteps of a segment, noisiest first; the noise level after the last is 0."""

    timesteps: _Levels
    sigmas: _Levels

    def __len__(self) -> int:
        return len(self.timesteps)

    def __iter__(self) -> Iterator[Step]:
        following = [*self.sigmas[1:], np.float32(0)]
        for timestep, sigma, next_sigma in zip(self.timesteps, self.sigmas, following, strict=True):
            yield Step(float(timestep), float(sigma), float(next_sigma))


@dataclass(frozen=True)
class Sampling:
    """How chunks are denoised: a clip that starts from text, or an image too, and one that goes on."""

    start: Schedule
    continuation: Schedule
    guidance: float

    def schedule(self, chunk: ChunkPlan) -> Schedule:
        return self.continuation if len(chunk.prefill) > 1 else self.start


def sampling_of(sampler: WindowSamplerConfig) -> Sampling:
    if sampler.mode == "distilled":
        start = continuation = distilled_schedule(sampler.steps, sampler.shift)
    else:
        start = guided_schedule(sampler.guided_steps, sampler.shift)
        continuation = guided_schedule_with_tail(sampler.guided_steps, sampler.shift)
    return Sampling(start, continuation, sampler.guidance)


def guided_schedule(num_steps: int, shift: float) -> Schedule:
    """`num_steps` levels, evenly spaced before the warp."""
    return _warp(np.linspace(1, _LAST_LEVEL, num_steps, dtype=np.float32), shift)


def guided_schedule_with_tail(num_steps: int, shift: float) -> Schedule:
    """As `guided_schedule` above timestep 500; below it, steps of 50 down to 50. 50 steps become 56.

    Continued segments take it: the warp leaves only four of 50 steps to the lower half, where detail is made.
    """
    upper = guided_schedule(num_steps, shift).timesteps
    tail = np.arange(TAIL_START, 0, -TAIL_STEP, dtype=np.float32)
    timesteps = np.concatenate([upper[upper > TAIL_START], tail], dtype=np.float32)
    return Schedule(timesteps, timesteps / np.float32(NUM_TRAIN_TIMESTEPS))


def distilled_schedule(steps: Sequence[int], shift: float) -> Schedule:
    """The levels of nominal `steps` on the 1000-step scale; the adapter was trained on multiples of 20."""
    return _warp(np.array(steps, dtype=np.float32) / np.float32(NUM_TRAIN_TIMESTEPS), shift)


def guide(flow: Tensor, scale: float) -> Tensor:
    """Guidance with the CFG-zero scale: `a * negative + scale * (positive - a * negative)`.

    Of `flow` `[2, ...]`, the row of the negative prompt first, to `[1, ...]` float32; `a` is the projection
    of the positive on the negative row, over all elements.
    """
    negative, positive = flow.float().chunk(2)
    negative = projection_scale(negative, positive) * negative
    return negative + scale * (positive - negative)


def projection_scale(negative: Tensor, positive: Tensor) -> Tensor:
    """`<positive, negative> / (|negative|^2 + 1e-8)` of two `[1, ...]` rows, a scalar."""
    return (positive * negative).sum() / (negative.square().sum() + 1e-8)


def _warp(levels: _Levels, shift: float) -> Schedule:
    factor = np.float32(shift)
    sigmas = factor * levels / (1 + (factor - 1) * levels)
    return Schedule(sigmas * NUM_TRAIN_TIMESTEPS, sigmas)
