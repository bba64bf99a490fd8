"""The library's fused attention, for keys that need no decoding: it returns the logsumexp that merging needs.

cuDNN's is a third faster than `attend_kernel` on Hopper GPUs. No public function of torch returns its
logsumexp: `varlen_attn` takes FlashAttention, half as fast there, and `flex_attention` has to be compiled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

from qvg_kernels.runtime.dispatch import is_hopper

Fused = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From queries, keys and values `[B, H, S, D]`, any strides but the last, to the output in their dtype, and
the natural logsumexp `[B, H, S]` float32.
"""


def choose_fused(query: Tensor, key: Tensor, value: Tensor) -> Fused | None:
    """What attends to keys that are as the model made them; none where `attend_kernel` does it.

    cuDNN makes 600 TFLOP/s on an H200, where `attend_kernel` makes 440. Nobody has timed it elsewhere.
    """
    if query.device.type == "cpu":
        return _by_torch
    if is_hopper(query.device) and can_use_cudnn_attention(
        SDPAParams(query, key, value, None, 0.0, False, False)
    ):
        return _by_cudnn
    return None


def _by_cudnn(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)
    # `[B, H, S, 1]` from torch 2.9 on.
    return found[0], found[1].flatten(2)


def _by_torch(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return found[0], found[1]
