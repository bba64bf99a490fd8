"""What a transformer block does between its matrices: add a gated change, norm, scale and shift, in a pass.

Source: diffusers, `WanTransformerBlock.forward`: float32 inside, rounded once after the sum and once after
the norm.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def add_gated(
    hidden: Tensor, change: Tensor, gate: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """`hidden + gate * change`, `[B, S, C]` in the dtype of `hidden`; without a gate all of the change.

    Args:
        gate: `[B, 1, C]` float32.
        out: Where it goes on a GPU; new memory without it.
    """
    if hidden.is_cuda:
        from qvg_kernels.norm.kernel import launch_add_norm

        return launch_add_norm(hidden, change, gate, out=out)[0]
    gated = change if gate is None else change * gate
    return (hidden.float() + gated.float()).to(hidden.dtype)


def norm_modulate(hidden: Tensor, factor: Tensor, shift: Tensor, eps: float) -> Tensor:
    """`factor * norm(hidden) + shift` over channels, `[B, S, C]` in the dtype of `hidden`.

    Args:
        factor: `[B, 1, C]` or `[C]`.
        shift: As `factor`.
    """
    if hidden.is_cuda:
        from qvg_kernels.norm.kernel import launch_add_norm

        return launch_add_norm(hidden, None, None, factor, shift, eps)[1]
    if factor.ndim == 1:
        # The same rounding as `FP32LayerNorm` of diffusers.
        normed = functional.layer_norm(hidden.float(), factor.shape, factor.float(), shift.float(), eps)
        return normed.to(hidden.dtype)
    normed = functional.layer_norm(hidden.float(), hidden.shape[-1:], eps=eps)
    return (normed * factor.float() + shift.float()).to(hidden.dtype)


def add_norm(
    hidden: Tensor,
    change: Tensor,
    gate: Tensor | None,
    factor: Tensor,
    shift: Tensor,
    eps: float,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`add_gated`, with its `out`, and `norm_modulate` of that."""
    if hidden.is_cuda:
        from qvg_kernels.norm.kernel import launch_add_norm

        return launch_add_norm(hidden, change, gate, factor, shift, eps, out=out)
    added = add_gated(hidden, change, gate)
    return added, norm_modulate(added, factor, shift, eps)


def norm_joined(
    joined: Tensor, query_weight: Tensor, key_weight: Tensor, eps: float, out: Sequence[Tensor] = ()
) -> tuple[Tensor, ...]:
    """Queries, keys and values `[B, S, C]` of `[B, S, 3 * C]`, queries and keys divided by their RMS.

    Args:
        query_weight: `[C]`.
        key_weight: `[C]`.
        out: Where they go on a GPU, `[B, S, C]` each; new memory without it.
    """
    if joined.is_cuda:
        from qvg_kernels.norm.kernel import launch_norm_joined

        return launch_norm_joined(joined, query_weight, key_weight, eps, out)
    query, key, value = joined.chunk(3, dim=-1)
    shape = query_weight.shape
    query = functional.rms_norm(query, shape, query_weight, eps)
    return query, functional.rms_norm(key, shape, key_weight, eps), value
