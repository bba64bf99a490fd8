"""Measure how the camera moves from the frames of a walk: no learned part, and no knowledge of the pose.

A camera's motion moves every pixel in a known way: a turn moves all of them alike, a step moves them by how
near they are, and how near the ground is follows from its place in the picture. So four numbers (forward,
right, turn right, turn up) explain the change from a frame to the next; least squares finds them from the
brightness and its slopes. Coloured objects are left out: they stand up from the ground, nearer than their
place in the picture says. All are in the backend's steps a latent frame: 1 is what a pose says.
"""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qvg_cli.models.hyworldplay.trajectory import FOCAL_PIXELS, STEP, TURN
from scripts.pocket.landscape import EYE_HEIGHT
from scripts.pocket.walks import PIXEL_FRAMES

# Moves of the pose grammar: which of the four numbers, and its sign.
SIGNS = {
    "w": (0, 1), "s": (0, -1), "d": (1, 1), "a": (1, -1),
    "right": (2, 1), "left": (2, -1), "up": (3, 1), "down": (3, -1),
}  # fmt: skip
# The move that an action label stands for; 0 is none.
LABELS = {9: "w", 18: "s", 27: "d", 36: "a", 1: "right", 2: "left", 3: "up", 4: "down"}
SHRINK = 2
BLUR = 5
ROBUST_PASSES = 4
# Saturation of the objects, and of nothing else in a scene but grey boulders; and how far around is left out.
OBJECT_SATURATION, OBJECT_MARGIN = 0.55, 7


def motion_fields(height: int, width: int) -> Tensor:
    """Motion of pixels `[4, 2, height, width]`, right and down, for one step of each kind a latent frame."""
    focal = FOCAL_PIXELS / 1920 * width, FOCAL_PIXELS / 1080 * height
    rows, columns = torch.meshgrid(
        (torch.arange(height) + 0.5 - height / 2) / focal[1],
        (torch.arange(width) + 0.5 - width / 2) / focal[0],
        indexing="ij",
    )
    nearness = rows.clamp(min=0) / EYE_HEIGHT
    zero = torch.zeros_like(rows)
    fields = [
        (STEP * nearness * columns, STEP * nearness * rows),
        (-STEP * nearness, zero),
        (-TURN * (1 + columns**2), -TURN * columns * rows),
        (TURN * columns * rows, TURN * (1 + rows**2)),
    ]
    return torch.stack([torch.stack([focal[0] * right, focal[1] * down]) for right, down in fields])


def measure_steps(frames: np.ndarray) -> np.ndarray:
    """Steps `[T - 1, 4]` a latent frame between neighbouring frames `[T, H, W, 3]` uint8."""
    light = torch.from_numpy(frames).float().permute(0, 3, 1, 2) / 255
    light = F.avg_pool2d(light, SHRINK)
    light = F.avg_pool2d(light, BLUR, stride=1, padding=BLUR // 2, count_include_pad=False)
    height, width = light.shape[-2:]
    fields = motion_fields(height, width) / PIXEL_FRAMES
    is_backdrop = ~_objects(light)
    found = []
    for at, (before, after) in enumerate(pairwise(light)):
        middle, change = (before + after) / 2, after - before
        across = (middle[:, 1:-1, 2:] - middle[:, 1:-1, :-2]) / 2
        along = (middle[:, 2:, 1:-1] - middle[:, :-2, 1:-1]) / 2
        inner = fields[:, :, 1:-1, 1:-1]
        slopes = -(across[None] * inner[:, :1] + along[None] * inner[:, 1:]).flatten(1).T.double()
        target = change[:, 1:-1, 1:-1].flatten().double()
        kept = (is_backdrop[at] & is_backdrop[at + 1])[1:-1, 1:-1].expand(3, -1, -1).flatten()
        found.append(_solve(slopes[kept], target[kept]))
    return torch.stack(found).numpy()


def _objects(light: Tensor) -> Tensor:
    """Where `[T, 3, H, W]` shows a coloured object, or its rim, `[T, H, W]`."""
    high, low = light.amax(dim=1, keepdim=True), light.amin(dim=1, keepdim=True)
    is_object = (high - low > OBJECT_SATURATION * high).float()
    return F.max_pool2d(is_object, OBJECT_MARGIN, stride=1, padding=OBJECT_MARGIN // 2)[:, 0] > 0


def _solve(slopes: Tensor, target: Tensor) -> Tensor:
    """Least squares that trusts pixels less the worse they fit: not all of them are ground or sky."""
    weight = torch.ones_like(target)
    for _ in range(ROBUST_PASSES):
        weighted = slopes * weight[:, None]
        normal = weighted.T @ slopes
        normal += 1e-6 * normal.trace() * torch.eye(4, dtype=normal.dtype)
        solution = torch.linalg.solve(normal, weighted.T @ target)
        rest = (target - slopes @ solution).abs()
        weight = 1 / (1 + (rest / (2 * rest.mean() + 1e-9)) ** 2)
    return solution


def name_move(steps: np.ndarray) -> str:
    """The move that steps `[N, 4]` show on the whole."""
    mean = steps.mean(axis=0)
    kind = int(np.abs(mean).argmax())
    return next(move for move, sign in SIGNS.items() if sign == (kind, int(np.sign(mean[kind])) or 1))


def name_moves(frames: np.ndarray, actions: tuple[int, ...]) -> list[tuple[str, str]]:
    """The move that the pose asks for, and the one that the frames show, for each stretch of one label.

    The first latent frame of a later stretch is left out: there one move passes into the other.
    """
    steps = measure_steps(frames)
    pairs = []
    for label, stretch in groupby(range(1, len(actions)), key=lambda frame: actions[frame]):
        own = list(stretch)
        judged = own if own[0] == 1 or len(own) == 1 else own[1:]
        seen = steps[PIXEL_FRAMES * (judged[0] - 1) : PIXEL_FRAMES * judged[-1]]
        pairs.append((LABELS[label], name_move(seen)))
    return pairs
