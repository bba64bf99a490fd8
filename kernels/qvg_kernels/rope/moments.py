"""The moment of queries as a packed key meets them: turned back by every offset between the two tokens.

A key k is read as `q^T R(o) k`, so an error e of it costs `e^T M e` with M the mean of `R(o)^T q q^T R(o)`
over offsets o. In complex numbers, one a pair of channels, a rotation multiplies `E q_a conj(q_b)` and
`E q_a q_b` by phases, whose means over offsets are products over the axes.
"""

from functools import lru_cache

import torch
from torch import Tensor

from qvg_kernels.rope.tables import pair_speeds

FRAMES = 21
"""Frames back that keys are read from, all alike: a constant, since a run's length may change."""


def placed_moment(moment: Tensor, rows: int, columns: int) -> Tensor:
    """The mean over offsets of `R(o)^T N R(o)`, for frames of `rows` by `columns` tokens.

    Args:
        moment: N, `[..., D, D]` float64.
    """
    same, other = _factors(moment.shape[-1], rows, columns, moment.device)
    pairs = moment.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).movedim(-3, -2)
    (first, mixed), (crossed, second) = (half.unbind(-1) for half in pairs.unbind(-2))
    apart = torch.complex(first + second, crossed - mixed) * same
    alike = torch.complex(first - second, mixed + crossed) * other
    total, difference = apart + alike, apart - alike
    upper = torch.stack([total.real, -difference.imag], -1)
    lower = torch.stack([total.imag, difference.real], -1)
    return torch.stack([upper, lower], -3).flatten(-2).flatten(-3, -2) / 2


@lru_cache(maxsize=8)
def _factors(head_dim: int, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean phases `[D / 2, D / 2]` of `q_a conj(q_b)` and of `q_a q_b`."""
    speeds = pair_speeds(head_dim)
    axis = torch.cat([torch.full_like(each, number) for number, each in enumerate(speeds)])
    speed = torch.cat(speeds)
    alone = torch.cat([_mean_phase(each, number, rows, columns) for number, each in enumerate(speeds)])
    same, other = alone[:, None] * alone.conj(), alone[:, None] * alone
    for number in range(3):
        pairs = (axis == number).nonzero().flatten()
        block, own = (pairs[:, None], pairs), speed[pairs]
        same[block] = _mean_phase(own[:, None] - own, number, rows, columns)
        other[block] = _mean_phase(own[:, None] + own, number, rows, columns)
    return same.to(device), other.to(device)


def _mean_phase(speeds: Tensor, axis: int, rows: int, columns: int) -> Tensor:
    """The mean of `exp(i speed o)` over offsets o of an axis: time, row or column."""
    if axis == 0:
        offsets = torch.arange(1, FRAMES + 1, dtype=torch.float64)
        share = torch.full_like(offsets, 1 / FRAMES)
    else:
        count = rows if axis == 1 else columns
        offsets = torch.arange(1 - count, count, dtype=torch.float64)
        # As many pairs of tokens are so far apart.
        share = (count - offsets.abs()) / count**2
    angles = speeds.unsqueeze(-1) * offsets
    return (torch.complex(angles.cos(), angles.sin()) * share).sum(-1)
