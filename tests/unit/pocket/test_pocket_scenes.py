"""The renderer: shapes where they should be, time without state, and rules that find again what was drawn."""

import numpy as np
import pytest
import torch

from scripts.pocket.prompts import SceneSpec
from scripts.pocket.scenes import (
    COLORS,
    MOTION_PERIOD_FRAMES,
    MOTIONS,
    SHAPES,
    make_scenes,
    object_positions,
    render,
)


def spec(**changes: str) -> SceneSpec:
    values = {"size": "large", "color": "red", "shape": "ball", "motion": "rest", "ground": "grass"}
    return SceneSpec(**{**values, "sky": "day", "camera": "fixed", **changes})


def small_render(specs: list[SceneSpec], times: list[float]) -> torch.Tensor:
    scenes = make_scenes(specs, torch.Generator().manual_seed(0))
    return render(scenes, torch.tensor(times).expand(len(specs), -1), height=64, width=112)


def test_every_shape_shows_in_its_color():
    video = small_render([spec(shape=shape, color="blue") for shape in SHAPES], [0.0])
    blue = (video[:, 2] - video[:, 0] > 0.35).float().mean(dim=(1, 2, 3))
    assert video.min() >= 0
    assert video.max() <= 1
    assert blue.min() > 0.01
    assert blue.max() < 0.25


def test_a_frame_depends_on_its_time_alone():
    moving = [spec(motion=motion, camera="orbit") for motion in MOTIONS]
    together = small_render(moving, [3.0, 500.0])
    torch.testing.assert_close(together[:, :, 1], small_render(moving, [500.0])[:, :, 0])


def test_motions_repeat_and_stay_above_the_ground():
    scenes = make_scenes([spec(motion=motion) for motion in MOTIONS], torch.Generator().manual_seed(1))
    times = torch.arange(0, 3 * MOTION_PERIOD_FRAMES).float().expand(len(MOTIONS), -1)
    centers = object_positions(scenes, times)
    later = object_positions(scenes, times + 10 * MOTION_PERIOD_FRAMES)
    torch.testing.assert_close(centers, later, atol=1e-3, rtol=0)
    assert (centers[..., 1] >= scenes.half_height[:, None] - 1e-6).all()


@pytest.mark.parametrize(
    "motion",
    ["bounce", *(pytest.param(m, marks=pytest.mark.slow) for m in ("rest", "slide", "circle", "approach"))],
)
def test_rules_find_what_was_drawn(motion):
    from scripts.pocket.detect import detect, find_blob

    color = list(COLORS)[list(MOTIONS).index(motion)]
    shape = SHAPES[list(MOTIONS).index(motion)]
    still = small_render([spec(shape=name) for name in SHAPES], [0.0]).permute(0, 2, 3, 4, 1).numpy()
    templates = {name: [find_blob(clip[0])] for name, clip in zip(SHAPES, still, strict=True)}
    scenes = make_scenes([spec(color=color, shape=shape, motion=motion)], torch.Generator().manual_seed(2))
    # The rules look at every other frame, so only those are drawn.
    video = render(scenes, torch.arange(0, 81, 2).float()[None], height=64, width=112)
    frames = (video[0].permute(1, 2, 3, 0) * 255).byte().numpy()
    finding = detect(np.repeat(frames, 2, axis=0)[:81], templates)
    assert (finding.color, finding.shape, finding.motion) == (color, shape, motion)
