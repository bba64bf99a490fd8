"""The two ways in which self-attention sees a token: by its place and time, and by its camera.

Both are rebuilt from the same raw keys and values whenever these are read. Matrices are kept in float32,
whatever the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qvg_cli.backends.hyworldplay.trajectory import Trajectory
from qvg_cli.backends.rotary import FrameRotation
from qvg_cli.cache.policy import Frames


@dataclass(frozen=True)
class RotaryStream:
    """Rotation by row, column, and the frame's slot among the frames in hand.

    Attributes:
        slots: Frame to slot. Frames without one are never read.
    """

    rotation: FrameRotation
    slots: Mapping[int, int]

    def rotate(self, keys: Tensor, frames: Frames, tokens: slice) -> Tensor:
        """Rotate `[B, h, s, D]`, which are `tokens` of the tokens of `frames`."""
        return self.rotation.rotate(keys, tuple(self.slots.get(frame, 0) for frame in frames), tokens)


@dataclass(frozen=True)
class Cameras:
    """Camera matrices of all frames of a video, `[F, 4, 4]` float32.

    The matrix of a frame is `P = lift(K) @ viewmat`, with `lift(K) = diag(fx, fy, 1, 1)`: the centre of the
    lens is left out. Of every group of 4 neighbouring channels, queries are multiplied by `P` transposed,
    keys and values by `P` inverted, and what a query has gathered by `P`.

    Source: Tencent-Hunyuan/HY-WorldPlay, `hyvideo/prope`; PRoPE, arXiv 2507.10496.
    """

    project: Tensor
    unproject: Tensor
    tokens_per_frame: int

    @classmethod
    def of(cls, trajectory: Trajectory, tokens_per_frame: int, device: torch.device) -> Cameras:
        """The matrices of a path."""
        viewmats = torch.from_numpy(trajectory.viewmats)
        intrinsics = torch.from_numpy(trajectory.intrinsics)
        focal = torch.ones(len(trajectory), 4, dtype=torch.float64)
        focal[:, :2] = intrinsics.diagonal(dim1=-2, dim2=-1)[:, :2]
        inverse = torch.zeros_like(viewmats)
        inverse[:, :3, :3] = viewmats[:, :3, :3].transpose(-1, -2)
        inverse[:, :3, 3:] = -inverse[:, :3, :3] @ viewmats[:, :3, 3:]
        inverse[:, 3, 3] = 1
        project = focal[:, :, None] * viewmats
        unproject = inverse / focal[:, None, :]
        return cls(project.float().to(device), unproject.float().to(device), tokens_per_frame)

    def rotate(self, keys: Tensor, frames: Frames, tokens: slice) -> Tensor:
        """Keys or values `[B, h, s, D]`, which are `tokens` of the tokens of `frames`, for this stream."""
        return self._apply(self.unproject, keys, frames, tokens)

    def rotate_query(self, query: Tensor, frames: Frames) -> Tensor:
        """All queries `[B, H, S, D]` of `frames`."""
        return self._apply(self.project.transpose(-1, -2), query, frames, slice(0, query.shape[2]))

    def restore(self, output: Tensor, frames: Frames) -> Tensor:
        """What the queries of `frames` have gathered, `[B, H, S, D]`, back in the axes of their cameras."""
        return self._apply(self.project, output, frames, slice(0, output.shape[2]))

    def _apply(self, matrices: Tensor, states: Tensor, frames: Frames, tokens: slice) -> Tensor:
        token = torch.arange(tokens.start or 0, tokens.stop, device=matrices.device)
        frame = torch.tensor(frames, device=matrices.device)[token // self.tokens_per_frame]
        groups = states.float().unflatten(-1, (-1, 4))
        return torch.einsum("sij,bhsgj->bhsgi", matrices[frame], groups).flatten(-2).to(states.dtype)
