"""Teach the adapter: clips that go through the distilled schedule, guided at every step by the frozen model.

The adapter makes its own way from noise to a clip, one row a step; at every point of it, it learns the
direction that guidance takes there. So it meets the errors that it will meet when it samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qvg_cli.models.longcat.schedule import distilled_schedule
from scripts.pocket.adapter import Adapter
from scripts.pocket.longcat import GUIDANCE, Prompts, WindowForward, guide
from scripts.pocket.windows import Windows, draw_prompts

STEPS = (1000, 940, 880, 820, 760, 700, 640, 580, 500, 440, 380, 320, 260, 200, 140, 80)
"""Nominal steps of the published adapter."""
SHIFT = 12.0
# Of given frames, in units of a latent channel's spread.
CONDITION_NOISE = 0.2


class Rollouts:
    """Clips on their way from noise, every one at a step of its own; a finished one makes room for another.

    Args:
        given: Condition frames of each window; with none, windows of time 0 are drawn.
        generator: On the device of the windows.
    """

    def __init__(
        self, windows: Windows, empty: Prompts, *, given: int, batch: int, generator: torch.Generator
    ) -> None:
        self.windows, self.empty, self.given, self.generator = windows, empty, given, generator
        schedule = distilled_schedule(STEPS, SHIFT)
        self.levels = torch.tensor([*schedule.sigmas.tolist(), 0.0], device=generator.device)
        self.step = torch.randint(len(STEPS), (batch,), generator=generator, device=generator.device)
        self.latents, self.condition, self.prompts = self._draw(batch)

    def _draw(self, count: int) -> tuple[Tensor, Tensor, Prompts]:
        """New clips at the noise levels of `step`."""
        among = len(self.windows) if self.given else self.windows.num_starts
        index = torch.randint(among, (count,), generator=self.generator, device=self.generator.device)
        clean = self.windows.latents[index].float()
        new = clean[:, :, self.given :]
        level = self.levels[self.step].view(-1, 1, 1, 1, 1)
        noisy = (1 - level) * new + level * torch.randn_like(new)
        prompts = draw_prompts(self.windows, index, self.generator, self.empty, 0.0)
        return noisy, spoil(clean[:, :, : self.given]), prompts

    def loss(self, forward: WindowForward, adapter: Adapter) -> Tensor:
        """How far the adapter's directions are from the guided ones; all clips take a step."""
        level, following = self.levels[self.step], self.levels[self.step + 1]
        window = torch.cat([self.condition, self.latents], dim=2)
        timesteps = 1000 * level
        with torch.no_grad():
            negative = forward(window, timesteps, self._negative(), given=self.given)
            positive = forward(window, timesteps, self.prompts, given=self.given)
            target = guide(negative, positive, GUIDANCE)
        weights = adapter.merged(forward.weights())
        flow = forward(window, timesteps, self.prompts, given=self.given, weights=weights)
        # Of a step's error the clip gets a part as large as the step; the root keeps the early ones in sight.
        weight = ((level - following) * len(STEPS)).sqrt()
        length = (following - level).view(-1, 1, 1, 1, 1)
        self._advance(self.latents - length * flow.detach())
        return ((flow - target).square().mean(dim=(1, 2, 3, 4)) * weight).mean()

    def _negative(self) -> Prompts:
        states, mask = self.empty.states, self.empty.mask
        count = len(self.latents)
        return Prompts(states.expand(count, -1, -1), mask.expand(count, -1))

    def _advance(self, latents: Tensor) -> None:
        self.step = self.step + 1
        is_done = self.step == len(STEPS)
        self.step = torch.where(is_done, 0, self.step)
        fresh, condition, prompts = self._draw(len(latents))
        rows = is_done.view(-1, 1, 1, 1, 1)
        self.latents = torch.where(rows, fresh, latents)
        self.condition = torch.where(rows, condition, self.condition)
        self.prompts = Prompts(
            torch.where(is_done[:, None, None], prompts.states, self.prompts.states),
            torch.where(is_done[:, None], prompts.mask, self.prompts.mask),
        )


def spoil(condition: Tensor) -> Tensor:
    """Add noise of a drawn strength to given frames: what a model made is never quite clean."""
    strength = torch.rand(len(condition), 1, 1, 1, 1, device=condition.device).square()
    return condition + CONDITION_NOISE * strength * torch.randn_like(condition)
