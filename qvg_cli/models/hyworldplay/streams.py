"""The second way in which self-attention sees a token, beside its place and time: by its camera.

Rebuilt from the raw keys and values whenever these are read. Matrices are kept in float32, whatever the dtype
of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qvg_cli.models.hyworldplay.trajectory import Trajectory
from qvg_cli.planning.chunks import Frames
from qvg_kernels.rope.placement import FrameMatrices


@dataclass(frozen=True, eq=False)
class Cameras:
    """Camera matrices of all frames of a video, `[F, 4, 4]` float32.

    The matrix of a frame is `P = lift(K) @ viewmat`, with `lift(K) = diag(fx, fy, 1, 1)`: the centre of the
    lens is left out. Of every group of 4 neighbouring channels, queries are multiplied by `P` transposed,
    keys and values by `P` inverted, and what a query has gathered by `P`.

    Source: Tencent-Hunyuan/HY-WorldPlay, `hyvideo/prope`; PRoPE, arXiv 2507.10496.
    """

    project: Tensor
    unproject: Tensor
    unproject_gain: float
    tokens_per_frame: int

    @classmethod
    def of(cls, trajectory: Trajectory, tokens_per_frame: int, device: torch.device) -> Cameras:
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
        # The largest of four values grows by at most the largest sum of a row.
        gain = float(unproject.abs().sum(-1).max())
        return cls(project.float().to(device), unproject.float().to(device), gain, tokens_per_frame)

    def placement(self, frames: Frames) -> FrameMatrices:
        """What keys and values of `frames` are multiplied by."""
        return self._matrices(self.unproject, frames)

    def rotate_query(self, query: Tensor, frames: Frames) -> Tensor:
        """All queries `[B, H, S, D]` of `frames`."""
        matrices = self._matrices(self.project.transpose(-1, -2).contiguous(), frames)
        return matrices.apply(query, slice(0, query.shape[2]))

    def restore(self, output: Tensor, frames: Frames) -> Tensor:
        """What the queries of `frames` have gathered, `[B, H, S, D]`, back in the axes of their cameras."""
        return self._matrices(self.project, frames).apply(output, slice(0, output.shape[2]))

    def _matrices(self, matrices: Tensor, frames: Frames) -> FrameMatrices:
        return FrameMatrices(matrices, self.unproject_gain, self.tokens_per_frame, frames)
