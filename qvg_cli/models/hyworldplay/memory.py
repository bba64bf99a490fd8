"""Which old frames the model looks back at: the newest, and those that saw what it will see. No torch.

Cameras are known from the pose, so the choice is made while planning.

Source: Tencent-Hunyuan/HY-WorldPlay, `hyvideo/utils/retrieval_context.py`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qvg_cli.models.hyworldplay.trajectory import Array

CHUNK_FRAMES = 4
"""Latent frames made together, and of a clip that is looked back at."""
_RADIUS = 8.0
_HALF_VIEW_DEGREES = (30.0, 17.5)
"""Horizontally and vertically, of the view that overlaps are measured in."""
_NUM_POINTS = 20_000


def ball_points() -> Array:
    """`[20_000, 3]` points, evenly spread over the ball of radius 8.

    An additive recurrence instead of the reference's random draws: the same everywhere, and more even.

    Source: M. Roberts, "The unreasonable effectiveness of quasirandom sequences": powers of the root of
    `x ** 4 = x + 1`.
    """
    root = 1.2207440846057596
    fractions = (0.5 + np.outer(np.arange(1, _NUM_POINTS + 1), root ** -np.arange(1.0, 4.0))) % 1
    radius = _RADIUS * np.cbrt(fractions[:, 0])
    height = 2 * fractions[:, 1] - 1
    around = 2 * np.pi * fractions[:, 2]
    flat = np.sqrt(1 - height**2)
    directions = np.stack((flat * np.cos(around), height, flat * np.sin(around)), axis=1)
    return directions * radius[:, None]


class ViewOverlap:
    """How much of one camera's view another sees, by `[N, 3]` points in the ball of radius 8, in its axes."""

    def __init__(self, points: Array) -> None:
        self._points = points[_is_inside(points, np.array([0.0, 0.0, 1.0]))]

    def distances(self, query: Array, others: Array) -> Array:
        """`[M]`: 1 - overlap of a view `[4, 4]` world to camera with those of `others`, `[M, 4, 4]`.

        Another camera sees a point that lies within the view's angles of its forward direction, its roll left
        out, and nearer than the radius.
        """
        if not len(self._points):
            return np.ones(len(others))
        poses = query @ np.linalg.inv(others)
        offsets = self._points - poses[:, None, :3, 3]
        seen = _is_inside(offsets, poses[:, None, :3, 2]) & (_length(offsets) < _RADIUS)
        return 1 - seen.mean(axis=1)


@dataclass(frozen=True, eq=False)
class Memory:
    """Chooses the frames a chunk looks back at.

    Attributes:
        viewmats: `[F, 4, 4]` world to camera, of the whole video.
        num_frames: Frames looked back at, of which some are recalled by view; `None` means all.
    """

    viewmats: Array
    overlap: ViewOverlap
    num_frames: int | None
    num_recalled: int

    def context(self, start: int) -> tuple[int, ...]:
        """Frames that the chunk of frames `start ..` looks back at, oldest first."""
        if self.num_frames is None or start <= self.num_frames:
            return tuple(range(start))
        recent = start - (self.num_frames - self.num_recalled)
        distances = self.clip_distances(start, recent)
        # A stable sort: of equal clips the older one is taken.
        nearest = sorted(distances, key=lambda clip: distances[clip])[: self.num_recalled // CHUNK_FRAMES]
        recalled = [frame for clip in sorted(nearest) for frame in range(clip, clip + CHUNK_FRAMES)]
        return (*recalled, *range(recent, start))

    def clip_distances(self, start: int, recent: int) -> dict[int, float]:
        """Mean distance of the chunk's views to each clip before frame `recent`, by the clip's first frame.

        A clip is judged by its first and third frame.
        """
        clips = range(0, recent, CHUNK_FRAMES)
        judged = self.viewmats[[frame for clip in clips for frame in (clip, clip + CHUNK_FRAMES // 2)]]
        queries = self.viewmats[start : start + CHUNK_FRAMES]
        distances = np.mean([self.overlap.distances(query, judged) for query in queries], axis=0)
        return dict(zip(clips, distances.reshape(-1, 2).mean(axis=1).tolist(), strict=True))


def _is_inside(vectors: Array, forward: Array) -> NDArray[np.bool_]:
    """Whether `[..., 3]` vectors are within the view's angles of a direction of length 1.

    Horizontal and vertical angles are compared by their cosines: `cos(a - b) > cos(limit)`.
    """
    flat, forward_flat = _length(vectors[..., ::2]), _length(forward[..., ::2])
    across = (vectors[..., ::2] * forward[..., ::2]).sum(axis=-1)
    along = flat * forward_flat + vectors[..., 1] * forward[..., 1]
    horizontal, vertical = np.cos(np.radians(_HALF_VIEW_DEGREES))
    return (across > horizontal * flat * forward_flat) & (along > vertical * _length(vectors))


def _length(vectors: Array) -> Array:
    return np.sqrt((vectors * vectors).sum(axis=-1))
