"""Walks are what their pose says: cameras, landscapes, cuts of clips, and the detector that judges them."""

import numpy as np
import pytest
import torch

from qvg_cli.models.hyworldplay.pose import parse_pose
from qvg_cli.models.hyworldplay.trajectory import STEP, TURN
from scripts.pocket.camera_motion import SIGNS, measure_steps, name_moves
from scripts.pocket.landscape import CLEARANCE, EYE_HEIGHT, Renderer, draw_landscape, world_cameras
from scripts.pocket.walk_clips import WalkClips
from scripts.pocket.walk_prompts import WalkGrammar
from scripts.pocket.walks import MOST_PITCH, draw_pose, walk_cameras


def draw(pose, frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    path, cameras = walk_cameras(pose, frames)
    return path, cameras, draw_landscape(WalkGrammar.load().sample_spec(generator), cameras, generator)


def test_cameras_pass_through_the_poses_at_an_even_pace():
    path, cameras = walk_cameras("w-1,right-1", 3)
    np.testing.assert_allclose(cameras[::4], np.linalg.inv(path.viewmats), atol=1e-12)
    np.testing.assert_allclose(cameras[:5, 2, 3], STEP * np.arange(5) / 4, atol=1e-12)
    turned = np.arctan2(cameras[4:, 0, 2], cameras[4:, 0, 0])
    np.testing.assert_allclose(turned, TURN * np.arange(5) / 4, atol=1e-12)
    np.testing.assert_allclose(cameras[4:, 2, 3], STEP, atol=1e-12)


def test_drawn_poses_have_their_length_and_keep_the_horizon():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        pose = parse_pose(draw_pose(40, generator))
        assert pose.num_poses == 40
        pitch = 0
        for command in pose.commands:
            if command.move in ("left", "right"):
                assert abs(pitch) < MOST_PITCH
            pitch += command.frames * ((command.move == "up") - (command.move == "down"))
            assert abs(pitch) <= MOST_PITCH


def test_nothing_stands_in_the_way_and_the_start_is_level():
    _, cameras, scene = draw("w-12,left-8,w-11", 32)
    eyes = world_cameras(cameras)[:, 0]
    assert eyes[0].tolist() == [0, EYE_HEIGHT, 0]
    for thing in scene.things:
        gap = np.hypot(eyes[:, 0] - thing.place[0], eyes[:, 2] - thing.place[1]).min()
        assert gap > thing.size + CLEARANCE
    assert scene.things[0].shape == scene.spec.shape
    assert scene.things[0].place[1] < 0


@pytest.mark.parametrize("move", SIGNS)
def test_the_detector_measures_one_step_of_every_move(move):
    path, cameras, scene = draw(f"{move}-2", 3, seed=3)
    video = Renderer(torch.device("cpu")).render(scene, cameras[4:], height=64, width=112)
    frames = (video * 255).byte().permute(1, 2, 3, 0).numpy()
    kind, sign = SIGNS[move]
    assert measure_steps(frames).mean(axis=0)[kind] == pytest.approx(sign, abs=0.35)
    assert name_moves(frames, path.actions[1:]) == [(move, move)]


def test_cuts_are_what_a_rollout_sees():
    generator = torch.Generator().manual_seed(0)
    clips = WalkClips(None, Renderer(torch.device("cpu")), None, most=1, frames=24, generator=generator)
    clips.made = 1
    clips.latents = torch.arange(24.0).view(1, 1, 24, 1, 1)
    clips.tokens = torch.zeros(1, 2, dtype=torch.long)
    clips.actions = torch.arange(24)[None]
    cut = clips.cut(200, 4)
    frames = cut.latents.long().flatten(1)
    assert torch.equal(frames, cut.actions)
    is_start = frames[:, 4] == 4
    assert 60 < is_start.sum() < 160
    for row, weight, given in zip(frames, cut.weight, cut.given, strict=True):
        assert torch.equal(row[4:], torch.arange(int(row[4]), int(row[4]) + 12))
        chunks = weight.view(4, 4)
        assert chunks[2:].all()
        if given:
            assert row[0] == 0
            assert weight[0] == 0
            assert weight[1:].all()
        elif not chunks[0].any():
            # Only next to its own past is a chunk judged.
            assert bool(chunks[1].all()) == (int(row[4]) == int(row[0]) + 4)
