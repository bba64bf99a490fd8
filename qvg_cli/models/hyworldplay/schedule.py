"""The few steps of the distilled model: nominal steps warped by the shift, as its authors wrote them down.

Source: Tencent-Hunyuan/HY-WorldPlay, `wan/inference`.
"""

from __future__ import annotations

import numpy as np

from qvg_cli.config.schema import SamplerConfig
from qvg_cli.models.wan.schedule import NUM_TRAIN_TIMESTEPS, Step

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
