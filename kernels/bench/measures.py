"""What a codec loses, in figures that can be compared: error, bias, and what it does to attention.

Every error is `10 log10(error energy / energy)` in dB, so lower is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvg_kernels.attention.losses import logit_losses
from qvg_kernels.rope.tables import pair_speeds

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
    """`[S, head_dim // 2]` complex rotations of Wan's 3-D rotary embedding.

    Args:
        slots: Position in time of each frame.
        frame: Rows and columns of its tokens.
    """
    places = torch.cartesian_prod(
        *(torch.tensor(list(axis), dtype=torch.float64) for axis in (slots, *map(range, frame)))
    )
    # Each pair of channels is turned by the place on its own axis.
    phase = torch.cat(
        [torch.outer(axis, speeds) for axis, speeds in zip(places.T, pair_speeds(head_dim), strict=True)], -1
    )
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
        return [
            HeadLosses(
                attention_db=error_db(found_output[one], output[one]),
                logit_db=10 * math.log10(max(float(lost.squared_error[one] / lost.variance[one]), 1e-30)),
                token_shift=float(lost.token_shift[one]),
                moved=float(lost.attention_moved[one]),
                mass=float(lost.history_mass[one]),
                num_keys=math.exp(float(entropy[one])),
            )
            for one in ((0, head) for head in range(self.query.shape[1]))
        ]

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
