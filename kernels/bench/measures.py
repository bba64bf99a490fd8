"""What a codec loses, in figures that can be compared: error, bias, and what it does to attention.

Every error is `10 log10(error energy / energy)` in dB, so lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvg_kernels.attention.losses import logit_losses

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
    """Rotations of a grid whose frames stand one after the other, as `rope_at` gives them."""
    frames, rows, columns = grid
    return rope_at(range(frames), (rows, columns), head_dim)


def rope_at(slots: Sequence[int], frame: tuple[int, int], head_dim: int) -> Tensor:
    """`[S, head_dim // 2]` complex rotations of Wan's 3-D rotary embedding, theta 10000.

    Args:
        slots: Position in time of each frame.
        frame: Rows and columns of its tokens.

    Source: Wan 2.1 (Wan-Video/Wan2.1, `wan/modules/model.py`): of the D/2 pairs, the last two thirds go to
    rows and columns (D // 6 each) and the rest to frames.
    """
    side = 2 * (head_dim // 6)
    sizes = (head_dim - 2 * side, side, side)
    angles = []
    for places, size in zip((slots, range(frame[0]), range(frame[1])), sizes, strict=True):
        speeds = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles.append(torch.outer(torch.tensor(list(places), dtype=torch.float64), speeds))
    time, row, column = angles
    shape = (len(time), *frame)
    parts = [
        time[:, None, None].expand(*shape, -1),
        row[None, :, None].expand(*shape, -1),
        column[None, None].expand(*shape, -1),
    ]
    phase = torch.cat(parts, -1).flatten(0, 2)
    return torch.polar(torch.ones_like(phase), phase).to(torch.complex64)


def rotate(values: Tensor, rotation: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of `[..., S, D]` values by `[S, D / 2]` rotations."""
    pairs = torch.view_as_complex(values.float().reshape(*values.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2)


@dataclass(frozen=True)
class HeadLosses:
    """What one head loses at one scale of its logits.

    Attributes:
        attention_db: Error of attention's output.
        logit_db: Error of the logits of packed keys over their variance within a query.
        token_shift: Share of queries that find another packed key the best.
        moved: Share of the attention weights that goes elsewhere.
        mass: Weight that packed keys gain.
        num_keys: Effective number of keys, `exp` of the weights' mean entropy.
    """

    attention_db: float
    logit_db: float
    token_shift: float
    moved: float
    mass: float
    num_keys: float


class AttentionProbe:
    """Attention of a few queries over keys and values, of which the first `num_packed` come from a cache.

    Args:
        query: `[1, H, Q, D]`, before rotation, as the others are.
        key: `[1, H, S, D]`.
        value: `[1, H, S, D]`.
        rotation: `[S, D / 2]` of the keys.
        query_rotation: `[Q, D / 2]`.
        num_packed: `None` for all.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotation: Tensor,
        query_rotation: Tensor,
        num_packed: int | None = None,
    ) -> None:
        self.query = rotate(query, query_rotation)
        self.rotation = rotation
        self.num_packed = key.shape[2] if num_packed is None else num_packed
        self.value = value.float()
        self.logits = self._logits(key)

    def scale_of(self, sharpness: float) -> float:
        """The scale at which the 99.95th percentile of the exact logits' distance from each query's mean is
        `sharpness`."""
        centred = (self.logits - self.logits.mean(-1, keepdim=True)).abs()
        rank = max(1, round((1 - LOGIT_PERCENTILE) * centred.numel()))
        return sharpness / float(centred.flatten().topk(rank).values[-1])

    def errors_db(self, key: Tensor, value: Tensor, sharpness: Sequence[float]) -> list[float]:
        """Error of the output of all heads together, for each sharpness of the logits."""
        logits, value = self._found(key, value)
        errors = []
        for sharp in sharpness:
            scale = self.scale_of(sharp)
            exact = torch.softmax(self.logits * scale, -1) @ self.value
            errors.append(error_db(torch.softmax(logits * scale, -1) @ value, exact))
        return errors

    def losses(self, key: Tensor, value: Tensor, scale: float) -> list[HeadLosses]:
        """What each head loses.

        Args:
            key: `[1, H, S, D]` decoded, before rotation; only the packed ones are looked at.
        """
        logits, value = self._found(key, value)
        exact, found = self.logits * scale, logits * scale
        packed = slice(self.num_packed)
        own = exact[..., self.num_packed :].logsumexp(-1)
        lost = logit_losses(exact[..., packed], found[..., packed], own)
        weights = torch.softmax(exact, -1)
        entropy = -(weights * weights.clamp_min(1e-30).log()).sum(-1).mean(-1)
        output, found_output = weights @ self.value, torch.softmax(found, -1) @ value
        heads = []
        for head in range(self.query.shape[1]):
            one = (0, head)
            heads.append(
                HeadLosses(
                    attention_db=error_db(found_output[one], output[one]),
                    logit_db=10 * math.log10(max(float(lost.squared_error[one] / lost.variance[one]), 1e-30)),
                    token_shift=float(lost.token_shift[one]),
                    moved=float(lost.attention_moved[one]),
                    mass=float(lost.history_mass[one]),
                    num_keys=math.exp(float(entropy[one])),
                )
            )
        return heads

    def _found(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and values, with the packed ones as they were decoded."""
        packed = slice(self.num_packed)
        logits = self._logits(key[:, :, packed], self.rotation[packed])
        return (
            torch.cat([logits, self.logits[..., self.num_packed :]], -1),
            torch.cat([value[:, :, packed].float(), self.value[:, :, self.num_packed :]], 2),
        )

    def _logits(self, key: Tensor, rotation: Tensor | None = None) -> Tensor:
        return self.query @ rotate(key, self.rotation if rotation is None else rotation).transpose(-1, -2)
