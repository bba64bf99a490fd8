"""What a walk adds to its run's folder: a picture of the camera's path, its poses in run.yaml. No torch."""

from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from qvg_cli.models.base import RunDetails
from qvg_cli.models.hyworldplay.config import HyWorldPlayConfig
from qvg_cli.models.hyworldplay.memory import CHUNK_FRAMES
from qvg_cli.models.hyworldplay.plan import fit_path
from qvg_cli.models.hyworldplay.trajectory import Trajectory
from qvg_cli.plotting import new_figure

_DIGITS = 9


def run_details(config: HyWorldPlayConfig) -> RunDetails:
    """The walk's action labels, camera matrices and lenses, and its picture."""
    path, _ = fit_path(config)
    camera = {
        "actions": list(path.actions),
        # Row by row, world to camera.
        "viewmats": [_rounded(matrix.ravel()) for matrix in path.viewmats],
        # fx, fy, cx, cy as fractions of the picture.
        "intrinsics": [_rounded(lens[[0, 1, 0, 1], [0, 1, 2, 2]]) for lens in path.intrinsics],
    }
    return RunDetails({"camera": camera}, {"path.png": partial(draw_path, path, config.walk.pose)})


def draw_path(path: Trajectory, title: str, file: Path | BinaryIO) -> None:
    """Draw a path from above, ahead being up: a dot a latent frame, an arrow of the heading at each chunk."""
    poses = np.linalg.inv(path.viewmats)
    right, ahead = poses[:, 0, 3], poses[:, 2, 3]
    with new_figure(5, 5, dpi=120) as figure:
        axes = figure.add_subplot()
        axes.plot(right, ahead, color="#9a9a9a", linewidth=1)
        axes.scatter(right, ahead, c=np.arange(len(path)), cmap="viridis", s=12, zorder=2)
        starts = slice(0, len(path), CHUNK_FRAMES)
        axes.quiver(
            right[starts],
            ahead[starts],
            poses[starts, 0, 2],
            poses[starts, 2, 2],
            np.arange(len(path))[starts],
            cmap="viridis",
            width=0.006,
            zorder=3,
        )
        axes.annotate("start", (right[0], ahead[0]), xytext=(6, -10), textcoords="offset points", fontsize=9)
        # A camera that only turns stays in one point; it gets some room too.
        reach = 0.2 + max(np.ptp(right), np.ptp(ahead)) / 2
        axes.set_xlim((right.max() + right.min()) / 2 - reach, (right.max() + right.min()) / 2 + reach)
        axes.set_ylim((ahead.max() + ahead.min()) / 2 - reach, (ahead.max() + ahead.min()) / 2 + reach)
        axes.set_aspect("equal")
        axes.set_xlabel("right")
        axes.set_ylabel("ahead")
        axes.set_title(title if len(title) <= 60 else f"{title[:57]}...", loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, format="png")


def _rounded(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[float]:
    # Adding 0 makes -0.0 plain.
    return [round(value, _DIGITS) + 0.0 for value in values.tolist()]
