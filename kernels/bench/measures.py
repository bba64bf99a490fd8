"""What a codec loses, in figures that can be compared: error, bias, and the error of attention's output.

Every error is `10 log10(error energy / energy)` in dB, so lower is better.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOGIT_PERCENTILE = 0.9995


def error_db(decoded: Tensor, original: Tensor) -> float:
    """Energy of the difference over the energy of the original, in dB."""
    difference = (decoded.double() - original.double()).square().sum()
    return 10 * math.log10(max(float(difference / original.double().square().sum()), 1e-30))


def gain(decoded: Tensor, original: Tensor) -> float:
    """Inner product with the original over its energy, both without the mean of each channel.

    1 means unbiased; less means that the codec shrinks what it stores.
    """
    centred = original.double() - original.double().mean(-2, keepdim=True)
    return float((centred * decoded.double()).sum() / centred.square().sum())


def rope_3d(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """`[S, head_dim // 2]` complex rotations of Wan's 3-D rotary embedding, theta 10000.

    Source: Wan 2.1 (Wan-Video/Wan2.1, `wan/modules/model.py`): of the D/2 pairs, the last two thirds go to
    rows and columns (D // 6 each) and the rest to frames.
    """
    frames, height, width = grid
    side = 2 * (head_dim // 6)
    sizes = (head_dim - 2 * side, side, side)
    angles = []
    for count, size in zip(grid, sizes, strict=True):
        speeds = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles.append(torch.outer(torch.arange(count, dtype=torch.float64), speeds))
    time, row, column = angles
    shape = (frames, height, width)
    parts = [
        time[:, None, None].expand(*shape, -1),
        row[None, :, None].expand(*shape, -1),
        column[None, None].expand(*shape, -1),
    ]
    phase = torch.cat(parts, -1).reshape(frames * height * width, -1)
    return torch.polar(torch.ones_like(phase), phase).to(torch.complex64)


def rotate(values: Tensor, rotation: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of `[..., S, D]` values by `[S, D / 2]` rotations."""
    pairs = torch.view_as_complex(values.float().reshape(*values.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2)


class AttentionProbe:
    """Attention of a span's queries over its keys and values, with logits brought to a given sharpness.

    The logits' scale is set once, on the original keys, so that the 99.95th percentile of their distance
    from each query's mean is `sharpness`; decoded keys are then read with the same scale.
    """

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, rotation: Tensor, query_rotation: Tensor
    ) -> None:
        self.query = rotate(query, query_rotation)
        self.rotation = rotation
        self.value = value.float()
        self.logits = self._logits(key)
        centred = (self.logits - self.logits.mean(-1, keepdim=True)).abs()
        rank = max(1, round((1 - LOGIT_PERCENTILE) * centred.numel()))
        self.spread = float(centred.flatten().topk(rank).values[-1])

    def _logits(self, key: Tensor) -> Tensor:
        return self.query @ rotate(key, self.rotation).transpose(-1, -2)

    def errors_db(self, key: Tensor, value: Tensor, sharpness: tuple[float, ...]) -> list[float]:
        """Error of the output with decoded keys and values, for each sharpness of the logits."""
        decoded_logits = self._logits(key)
        errors = []
        for sharp in sharpness:
            scale = sharp / self.spread
            exact = torch.softmax(self.logits * scale, -1) @ self.value
            lossy = torch.softmax(decoded_logits * scale, -1) @ value.float()
            errors.append(error_db(lossy, exact))
        return errors
