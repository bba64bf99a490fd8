"""What trains the pocket LongCat: the windows, their weights in the loss, and the adapter's own way."""

from dataclasses import replace

import pytest
import torch

from qvg_cli.models.longcat.schedule import distilled_schedule, guide
from scripts.pocket import longcat
from scripts.pocket.adapter import Adapter
from scripts.pocket.distill import SHIFT, STEPS, Rollouts
from scripts.pocket.longcat import CONFIG, Prompts, WindowForward, build_transformer
from scripts.pocket.prompts import Grammar
from scripts.pocket.train_longcat import draw_levels, weighted_error
from scripts.pocket.windows import Windows, draw_prompts, draw_spec, object_cells

TINY = replace(CONFIG, hidden_size=128, num_heads=1, depth=1, caption_channels=24, adaln_tembed_dim=16)


@pytest.fixture
def windows():
    torch.manual_seed(0)
    masks = torch.arange(5).expand(6, 2, 5) < 3
    states = torch.randn(6, 2, 5, 24) * masks[..., None]
    latents = torch.randn(6, 16, 4, 4, 4)
    return Windows(latents, torch.zeros(6, 4, 4, 4, dtype=torch.bool), states, masks, num_starts=2)


@pytest.fixture
def empty():
    return Prompts(torch.zeros(1, 5, 24), torch.zeros(1, 5, dtype=torch.bool))


def test_cells_of_the_object_are_the_saturated_ones():
    video = torch.full((1, 3, 9, 16, 24), 0.6)
    video[:, 2, 0, :8, :8] = 0.0
    video[:, 0, 7, 9, 20] = 0.1
    cells = object_cells(video)
    assert cells.shape == (1, 3, 2, 3)
    assert cells.nonzero().tolist() == [[0, 0, 0, 0], [0, 2, 1, 2]]


def test_rough_values_are_not_taught():
    grammar, generator = Grammar.load(), torch.Generator().manual_seed(0)
    shapes = {draw_spec(grammar, generator).shape for _ in range(60)}
    assert shapes == set(grammar.concepts["shape"])


def test_levels_cover_both_halves():
    levels = draw_levels(4000, torch.Generator().manual_seed(0))
    assert 0 <= levels.min() < 0.02
    assert 0.98 < levels.max() <= 1
    # Shift 12 alone leaves 8 percent below one half; with shift 3 for every second window there are 17.
    assert 0.14 < (levels < 0.5).float().mean() < 0.19


def test_the_object_weighs_more():
    objects = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    objects[0, 0, 0, 0] = True
    error = objects[:, None].float().expand(-1, 16, -1, -1, -1)
    assert float(weighted_error(error, objects)) == pytest.approx(9 / 16)


def test_dropped_prompts_become_the_empty_one(windows, empty):
    index, generator = torch.tensor([0, 3, 5]), torch.Generator().manual_seed(0)
    dropped = draw_prompts(windows, index, generator, empty, 1.0)
    assert not dropped.states.any()
    assert not dropped.mask.any()
    kept = draw_prompts(windows, index, generator, empty, 0.0)
    assert all(
        any(torch.equal(kept.states[i], row) for row in windows.states[n]) for i, n in enumerate(index)
    )


def test_guidance_of_many_is_that_of_each():
    negative, positive = torch.randn(2, 3, 16, 2, 4, 4)
    together = longcat.guide(negative, positive, 2.5)
    for i in range(3):
        single = guide(torch.stack([negative[i], positive[i]]), 2.5)
        torch.testing.assert_close(together[i : i + 1], single)


@pytest.mark.parametrize("given", [0, 2])
def test_a_rollout_takes_the_steps_of_the_sampler(windows, empty, given):
    torch.manual_seed(1)
    model = build_transformer(TINY).requires_grad_(False)
    model.final_layer.linear.weight.normal_(std=0.1)
    adapter, forward = Adapter(model, rank=2), WindowForward(model)
    generator = torch.Generator().manual_seed(0)
    rollouts = Rollouts(windows, empty, given=given, batch=3, generator=generator)
    if not given:
        starts = windows.states[: windows.num_starts].flatten(0, 1)
        assert all(any(torch.equal(row, start) for start in starts) for row in rollouts.prompts.states)
    rollouts.step = torch.tensor([0, 0, len(STEPS) - 2])
    expected, prompts, condition = rollouts.latents, rollouts.prompts, rollouts.condition
    for step in list(distilled_schedule(STEPS, SHIFT))[:2]:
        window = torch.cat([condition, expected], dim=2)
        timesteps = torch.full((3,), step.timestep)
        flow = forward(window, timesteps, prompts, given=given)
        assert rollouts.loss(forward, adapter) > 0
        expected = step.advance(expected, flow)
    torch.testing.assert_close(rollouts.latents[:2], expected[:2], atol=1e-4, rtol=1e-4)
    # The third was at its last but one and made room.
    assert rollouts.step.tolist() == [2, 2, 0]
