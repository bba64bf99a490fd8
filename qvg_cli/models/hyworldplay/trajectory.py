"""The camera's path: one pose, one lens and one action label a latent frame. numpy in float64, no torch.

Axes of a camera: x to the right, y down, z forward. Moves act in the camera's own axes. Invariant: the pose
of a latent frame, its lens and its label come from the same entry of the path.

Source: Tencent-Hunyuan/HY-WorldPlay, `hyvideo/generate.py` (steps, lens, labels) and
`hyvideo/generate_custom_trajectory.py` (the file format).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qvg_cli.environment import expand_user
from qvg_cli.errors import UsageError
from qvg_cli.models.hyworldplay.pose import MAX_POSES, Command, parse_pose
from qvg_cli.text_files import read_text

Array = NDArray[np.float64]

STEP = 0.08
"""Length of a move in one latent frame."""
TURN = math.radians(3.0)
"""Angle of a turn in one latent frame."""
FOCAL_PIXELS = 969.6969696969696
CENTRE_PIXELS = (960.0, 540.0)
"""The lens that the model was trained with, of a 1920x1080 camera, whatever the size of the video."""
_MIN_STEP = 1e-4
_MIN_TURN_DEGREES = 0.05
_TOLERANCE = 1e-3
"""How far a rotation read from a file may be off: files are written with few digits."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A camera path.

    Attributes:
        viewmats: `[F, 4, 4]` world to camera.
        intrinsics: `[F, 3, 3]`, as fractions of the picture's width and height, the centre at one half.
        actions: What the camera does from the frame before to this one, 0 .. 80; see `action_labels`.
        notes: What of the request does not come true as it was written, to be shown to the user.
    """

    viewmats: Array
    intrinsics: Array
    actions: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.actions)

    def take(self, num_frames: int) -> Self:
        """The first `num_frames` poses; past the end the last one stays, labelled as no motion."""
        at = np.minimum(np.arange(num_frames), len(self) - 1)
        held = (0,) * max(0, num_frames - len(self))
        return replace(
            self,
            viewmats=self.viewmats[at],
            intrinsics=self.intrinsics[at],
            actions=self.actions[:num_frames] + held,
        )


def camera_path(pose: str) -> Trajectory:
    """The path of a pose text, or of a trajectory file that ends in `.json`; `UsageError` says where not."""
    if pose.strip().lower().endswith(".json"):
        return read_trajectory(expand_user(pose.strip()))
    parsed = parse_pose(pose)
    return replace(walk(parsed.commands), notes=parsed.notes)


def walk(commands: Sequence[Command]) -> Trajectory:
    """The path of some moves, from the origin: one pose more than their latent frames."""
    pose = np.eye(4)
    poses = [pose]
    for command in commands:
        step = _motion(command.move)
        for _ in range(command.frames):
            pose = pose @ step
            poses.append(pose)
    pixels = np.array([[FOCAL_PIXELS, 0, CENTRE_PIXELS[0]], [0, FOCAL_PIXELS, CENTRE_PIXELS[1]], [0, 0, 1]])
    return from_cameras(np.stack(poses), np.broadcast_to(pixels, (len(poses), 3, 3)))


def from_cameras(camera_to_world: Array, pixel_intrinsics: Array) -> Trajectory:
    """A path from `[F, 4, 4]` poses and `[F, 3, 3]` lenses in pixels, whose centre is half the picture."""
    intrinsics = np.zeros(pixel_intrinsics.shape)
    for axis in (0, 1):
        intrinsics[:, axis, axis] = pixel_intrinsics[:, axis, axis] / (2 * pixel_intrinsics[:, axis, 2])
        intrinsics[:, axis, 2] = 0.5
    intrinsics[:, 2, 2] = 1.0
    viewmats = np.linalg.inv(camera_to_world).astype(np.float64)
    return Trajectory(viewmats, intrinsics, action_labels(camera_to_world))


def action_labels(camera_to_world: Array) -> tuple[int, ...]:
    """Labels `9 * move + turn` of `[F, 4, 4]` poses; the first is 0.

    A class of two signs is 0 for none, 1 and 2 for the first alone, 3 and 4 for the second alone, 5 to 8 for
    both: ++, +-, -+, --. A move has forward and right; a turn has right and up. A direction counts within 60
    degrees of its axis if the step is longer than 1e-4, a turn beyond 0.05 degrees.
    """
    labels = [0]
    for before, after in pairwise(camera_to_world):
        relative = np.linalg.inv(before) @ after
        step, rotation = relative[:3, 3], relative[:3, :3]
        length, move = float(np.linalg.norm(step)), 0
        if length > _MIN_STEP:
            right, _, forward = np.degrees(np.arcsin(np.clip(step / length, -1, 1)))
            move = _sign_class(forward, right, 30)
        # Euler angles of R = Rz Ry Rx.
        pitch = math.degrees(math.atan2(rotation[2, 1], rotation[2, 2]))
        yaw = math.degrees(math.atan2(-rotation[2, 0], math.hypot(rotation[0, 0], rotation[1, 0])))
        labels.append(9 * move + _sign_class(yaw, pitch, _MIN_TURN_DEGREES))
    return tuple(labels)


def read_trajectory(path: Path) -> Trajectory:
    """Read a path from JSON: `{"0": {"extrinsic": 4x4 camera to world, "K": 3x3 in pixels}, "1": ...}`.

    A `UsageError` names the entry that is not what it has to be.
    """
    try:
        entries = json.loads(read_text(path, "the trajectory"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the trajectory {path} is not JSON: {error}") from error
    if not isinstance(entries, dict) or not entries:
        raise UsageError(f"the trajectory {path} has no entries", hint='entries are named "0", "1", ...')
    has = f"the trajectory {path} has {len(entries)} entries"
    if len(entries) > MAX_POSES:
        raise UsageError(f"{has}, the longest path has {MAX_POSES}")
    for name in map(str, range(len(entries))):
        if name not in entries:
            hint = 'entries are named "0", "1", ... without a gap'
            raise UsageError(f"{has} but none named {name!r}", hint=hint)
    ordered = [entries[str(index)] for index in range(len(entries))]
    poses = [_pose(path, index, entry) for index, entry in enumerate(ordered)]
    lenses = [_lens(path, index, entry) for index, entry in enumerate(ordered)]
    return from_cameras(np.stack(poses), np.stack(lenses))


def _motion(move: str) -> Array:
    """Camera after one latent frame of `move`, in the axes of the camera before."""
    motion = np.eye(4)
    if move in ("w", "s"):
        motion[2, 3] = STEP if move == "w" else -STEP
    elif move in ("d", "a"):
        motion[0, 3] = STEP if move == "d" else -STEP
    else:
        angle = TURN if move in ("right", "up") else -TURN
        cosine, sine = math.cos(angle), math.sin(angle)
        if move in ("right", "left"):
            rotation = [[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]]
        else:
            rotation = [[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]]
        motion[:3, :3] = rotation
    return motion


def _sign_class(first: float, second: float, least: float) -> int:
    """The class of two angles, of which one counts beyond `least` degrees."""
    classes = {0: (0, 3, 4), 1: (1, 5, 6), -1: (2, 7, 8)}
    signs = [int(angle > least) - int(angle < -least) for angle in (first, second)]
    return classes[signs[0]][signs[1]]


def _pose(path: Path, index: int, entry: Any) -> Array:
    pose = _matrix(path, index, entry, "extrinsic", 4)
    if not np.allclose(pose[3], (0, 0, 0, 1), atol=_TOLERANCE):
        raise _wrong(path, index, f"the last row of extrinsic is {pose[3].tolist()}, not [0, 0, 0, 1]")
    rotation = pose[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if error > _TOLERANCE:
        raise _wrong(path, index, f"the rotation of extrinsic is off by {error:.2g} from orthonormal")
    if np.linalg.det(rotation) < 0:
        raise _wrong(path, index, "extrinsic mirrors the picture: its determinant is negative")
    return pose


def _lens(path: Path, index: int, entry: Any) -> Array:
    lens = _matrix(path, index, entry, "K", 3)
    for name, value in (("fx", lens[0, 0]), ("fy", lens[1, 1]), ("cx", lens[0, 2]), ("cy", lens[1, 2])):
        if value <= 0:
            raise _wrong(path, index, f"{name}={value:g} of K is not positive")
    return lens


def _matrix(path: Path, index: int, entry: Any, key: str, size: int) -> Array:
    try:
        matrix = np.asarray(entry[key], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(path, index, f"{key} is missing or not a matrix of numbers") from error
    if matrix.shape != (size, size) or not np.isfinite(matrix).all():
        raise _wrong(path, index, f"{key} is not a {size}x{size} matrix of finite numbers")
    return matrix


def _wrong(path: Path, index: int, what: str) -> UsageError:
    return UsageError(f"trajectory {path}, entry {str(index)!r}: {what}")
