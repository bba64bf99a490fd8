"""The few-step schedule: nominal steps on a 1000-step scale, warped by the shift of flow matching.

`sigma = shift * u / (1 + (shift - 1) * u)` with `u = step / 1000`; the conditioning timestep is
`1000 * sigma`.
Timesteps are floats (937.5, 833.33, ...) and must never be rounded.

Source: guandeh17/Self-Forcing at 33593df, `utils/scheduler.py` and `warp_denoising_step`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class Step:
    """One denoising step: the conditioning timestep, and how much of its input is noise."""

    timestep: float
    sigma: float

    def clean(self, sample: Tensor, flow: Tensor) -> Tensor:
        """The clean latents that `flow = noise - clean` implies for `sample`; computed in float64."""
        return (sample.double() - self.sigma * flow.double()).to(sample.dtype)

    def renoise(self, clean: Tensor, noise: Tensor) -> Tensor:
        """`clean` brought to this step's noise level; computed in float32."""
        return ((1 - self.sigma) * clean.float() + self.sigma * noise.float()).to(clean.dtype)


def denoising_steps(steps: Sequence[int], shift: float) -> tuple[Step, ...]:
    """The steps of a chunk, noisiest first, of nominal `steps` on the 1000-step scale."""
    found = []
    for step in steps:
        fraction = step / NUM_TRAIN_TIMESTEPS
        # The published table is float32; the model was not trained on the timestep of a float64 value.
        sigma = torch.tensor(shift * fraction / (1 + (shift - 1) * fraction), dtype=torch.float32)
        found.append(Step(timestep=(sigma * NUM_TRAIN_TIMESTEPS).item(), sigma=sigma.item()))
    return tuple(found)
