"""Attention over a history that is kept packed, in torch: read into one bounded workspace, attended, reused.

The history is never expanded whole. Invariant: the result does not depend on the workspace's size beyond the
rounding of the sums.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qvg_kernels.attention.history import OwnKeys, StoredBlock, Workspace

_QUERY_TILE = 1024


def attend_in_torch(query: Tensor, keys: Sequence[StoredBlock | OwnKeys], workspace: Workspace) -> Tensor:
    """`attend.attend` in torch: a few heads at a time.

    Of one head whose keys exceed the workspace as many keys as fit, merged by an online-softmax state:
    maximum, sum and output.
    """
    batch, num_heads, _, head_dim = query.shape
    num_tokens = sum(each.num_tokens for each in keys)
    token_bytes = 2 * batch * head_dim * query.element_size()
    # One token of one head is read even if it does not fit.
    pass_tokens = max(1, min(num_tokens, workspace.limit_bytes // token_bytes))
    group = max(1, min(num_heads, workspace.limit_bytes // (token_bytes * num_tokens)))
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for first in range(0, num_heads, group):
        heads = slice(first, min(first + group, num_heads))
        passes = _passes(query[:, heads], heads, keys, pass_tokens, workspace)
        if pass_tokens >= num_tokens:
            key, value = next(passes)
            output[:, heads] = functional.scaled_dot_product_attention(query[:, heads], key, value)
        else:
            output[:, heads] = _attend_passes(query[:, heads], passes)
    return output


def _passes(
    query: Tensor, heads: slice, keys: Sequence[StoredBlock | OwnKeys], pass_tokens: int, workspace: Workspace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fill the workspace with up to `pass_tokens` keys at a time; a pass is valid until the next."""
    batch, group, _, head_dim = query.shape
    shape = (2, batch, group, pass_tokens, head_dim)
    buffer = workspace.take(math.prod(shape) * query.element_size(), query.device)
    key, value = buffer.view(query.dtype).view(shape)
    filled = 0
    for each in keys:
        start = 0
        while start < each.num_tokens:
            stop = min(each.num_tokens, start + pass_tokens - filled)
            target = slice(filled, filled + stop - start)
            key[:, :, target], value[:, :, target] = each.read(heads, slice(start, stop))
            filled, start = target.stop, stop
            if filled == pass_tokens:
                yield key, value
                filled = 0
    if filled:
        yield key[:, :, :filled], value[:, :, :filled]


def _attend_passes(query: Tensor, passes: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over the keys of all passes, with an online-softmax state in float32."""
    batch, heads, length, head_dim = query.shape
    maximum = query.new_full((batch, heads, length, 1), -math.inf, dtype=torch.float32)
    denominator = torch.zeros_like(maximum)
    output = query.new_zeros((batch, heads, length, head_dim), dtype=torch.float32)
    for key, value in passes:
        for start in range(0, length, _QUERY_TILE):
            rows = slice(start, start + _QUERY_TILE)
            logits = (query[:, :, rows] @ key.transpose(-1, -2)).float() * head_dim**-0.5
            new_maximum = torch.maximum(maximum[:, :, rows], logits.amax(dim=-1, keepdim=True))
            weights = torch.exp(logits - new_maximum)
            decay = torch.exp(maximum[:, :, rows] - new_maximum)
            denominator[:, :, rows] = denominator[:, :, rows] * decay + weights.sum(dim=-1, keepdim=True)
            output[:, :, rows] = output[:, :, rows] * decay + (weights.to(value.dtype) @ value).float()
            maximum[:, :, rows] = new_maximum
    return (output / denominator).to(query.dtype)
