"""The norm over the channels of pixels and the activation after it, in one pass.

`silu(scale * gamma * x / |x|)`, the length over channels.

Source: diffusers, `WanRMS_norm` in `autoencoder_kl_wan.py`; the length is at least 1e-12, as
`functional.normalize` has it.
"""

import torch
from torch import Tensor
from torch.nn import functional

_LEAST_LENGTH = 1e-12


def norm_silu(states: Tensor, gamma: Tensor, scale: float, out: Tensor) -> None:
    """Write `silu(scale * gamma * states / |states|)`, the length over channels, to `out`.

    Args:
        states: `[B, C, T, H, W]`, any strides.
        gamma: `[C]`.
        out: `[B, C, T, H, W]` of the same dtype; computed in float32 and rounded once.
    """
    if states.is_cuda:
        from qvg_kernels.norm.kernel import launch_norm_silu

        launch_norm_silu(states, gamma, scale, out)
        return
    normed = functional.normalize(states.float(), dim=1, eps=_LEAST_LENGTH)
    weight = scale * gamma.float().view(1, -1, *[1] * (states.ndim - 2))
    out.copy_(functional.silu(normed * weight).to(torch.promote_types(states.dtype, torch.bfloat16)))
