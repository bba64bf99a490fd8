"""Walks for the pocket world: pose texts as a user would write them, and where the camera is in every frame.

Poses and lens are those that the backend computes from the pose text, one a latent frame. The video has four
pixel frames a latent frame: the camera passes through the pose of latent frame `i` in pixel frame `4 i`, and
between two poses it moves evenly.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from qvg_cli.models.hyworldplay.trajectory import Array, Trajectory, camera_path

PIXEL_FRAMES = 4
"""Pixel frames of a latent frame; the first latent frame has one."""

# How often a training walk takes each move; turns up and down soon lose the ground.
MOVES = {"w": 0.20, "s": 0.12, "a": 0.14, "d": 0.14, "left": 0.12, "right": 0.12, "up": 0.08, "down": 0.08}
MOVE_FRAMES = (3, 12)
# In latent frames of a turn, 3 degrees each: how far a walk looks up or down, and how far where it goes on.
MOST_PITCH, LEVEL_PITCH = 8, 3


def draw_pose(frames: int, generator: torch.Generator) -> str:
    """A pose text of `frames` latent frames, its start included, that keeps the horizon in the picture.

    Looking up or down is taken back before anything else is done: a turn of a tilted camera would roll it.
    """
    moves: list[str] = []
    left, pitch = frames - 1, 0
    while left > 0:
        move = list(MOVES)[int(torch.multinomial(torch.tensor(list(MOVES.values())), 1, generator=generator))]
        low, high = MOVE_FRAMES
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        if abs(pitch) > LEVEL_PITCH:
            move, length = ("down" if pitch > 0 else "up"), abs(pitch)
        elif move in ("up", "down"):
            sign = 1 if move == "up" else -1
            length = min(length, MOST_PITCH - sign * pitch)
        length = min(length, left)
        pitch += length * ((move == "up") - (move == "down"))
        left -= length
        moves.append(f"{move}-{length}")
    return ",".join(moves)


def pixel_cameras(path: Trajectory) -> Array:
    """Camera to world of every pixel frame, `[1 + 4 (F - 1), 4, 4]`, in the axes of the path."""
    poses = np.linalg.inv(path.viewmats)
    cameras = [poses[0]]
    for before, after in pairwise(poses):
        motion = np.linalg.inv(before) @ after
        cameras += [before @ _part(motion, (step + 1) / PIXEL_FRAMES) for step in range(PIXEL_FRAMES - 1)]
        cameras.append(after)
    return np.stack(cameras)


def walk_cameras(pose: str, frames: int) -> tuple[Trajectory, Array]:
    """The path of a pose text over `frames` latent frames, and the cameras of its pixel frames."""
    path = camera_path(pose).take(frames)
    return path, pixel_cameras(path)


def _part(motion: Array, share: float) -> Array:
    """The first `share` of a small rigid motion: its shift shortened, its rotation about the same axis."""
    rotation = motion[:3, :3]
    axis = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine = np.linalg.norm(axis) / 2
    result = np.eye(4)
    result[:3, 3] = share * motion[:3, 3]
    if sine > 1e-9:
        angle = share * np.arctan2(sine, (np.trace(rotation) - 1) / 2)
        x, y, z = axis / (2 * sine)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        result[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return result
