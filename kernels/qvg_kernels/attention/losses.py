"""What packing does to attention, judged by some queries: how far logits move, and what that changes.

The keys that are exact in both cases, such as a chunk's own, count only by the sum of their exponentials.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitLosses:
    """Means over the queries of each head, `[B, H]`.

    Attributes:
        squared_error: Of the logits of packed keys, in nats squared.
        variance: Of the exact logits within a query.
        token_shift: Share of the queries whose largest logit over packed keys is that of another key.
        attention_moved: Half the sum of the absolute changes of the weights, over all keys.
        history_mass: Weight that the packed keys gain; below 0 they lose it.
    """

    squared_error: Tensor
    variance: Tensor
    token_shift: Tensor
    attention_moved: Tensor
    history_mass: Tensor


def logit_losses(exact: Tensor, found: Tensor, own: Tensor) -> LogitLosses:
    """Compare the logits of packed keys with those of exact ones.

    Args:
        exact: `[B, H, Q, S]` float32, after the model's scale.
        found: The same from decoded keys.
        own: `[B, H, Q]`, the logarithm of the summed exponentials of all keys that are not packed; minus
            infinity for none.
    """
    weights, found_weights = (
        (logits - torch.logaddexp(logits.logsumexp(-1), own).unsqueeze(-1)).exp() for logits in (exact, found)
    )
    mass = found_weights.sum(-1) - weights.sum(-1)
    # What the packed keys gain, the others lose together.
    moved = ((found_weights - weights).abs().sum(-1) + mass.abs()) / 2
    # Of equal logits the first counts: argmax does not promise which it takes.
    shifted = _first_largest(exact) != _first_largest(found)
    return LogitLosses(
        squared_error=(found - exact).square().mean((-2, -1)),
        variance=exact.var(-1, correction=0).mean(-1),
        token_shift=shifted.float().mean(-1),
        attention_moved=moved.mean(-1),
        history_mass=mass.mean(-1),
    )


def _first_largest(logits: Tensor) -> Tensor:
    is_largest = logits == logits.amax(-1, keepdim=True)
    return torch.where(
        is_largest, torch.arange(logits.shape[-1], device=logits.device), logits.shape[-1]
    ).amin(-1)
