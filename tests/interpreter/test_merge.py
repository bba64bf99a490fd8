"""The states of splits, and what the library made of other keys, become one attention."""

import pytest
import torch
from torch.nn import functional

from qvg_kernels.attention.combine import merge_kernel

BATCH, HEADS, QUERIES, HEAD_DIM, BLOCK = 2, 3, 37, 64, 16
LOG2_E = 1.4426950408889634


def keys_of(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, HEADS, count, HEAD_DIM, generator=generator) for _ in range(2)]


def state_of(query, key, value):
    """A split's maximum, total and output, in base 2; any maximum will do, so it is not the largest logit."""
    logits = query @ key.mT * HEAD_DIM**-0.5 * LOG2_E
    maximum = logits.amax(-1) - 1.5
    weights = torch.exp2(logits - maximum.unsqueeze(-1))
    return maximum.flatten(0, 1), weights.sum(-1).flatten(0, 1), (weights @ value).flatten(0, 1)


def merged(states, own=None, logsumexp=None):
    """The kernel's output, with the heads of a token beside each other."""
    if states:
        maximum, total, output = (torch.stack(side) for side in zip(*states, strict=True))
    else:
        maximum, total, output = (torch.full((1,), float("nan")) for _ in range(3))
    found = torch.full((BATCH, QUERIES, HEADS, HEAD_DIM), float("nan")).transpose(1, 2)
    strides = [(0, 0, 0) if each is None else each.stride()[:3] for each in (own, logsumexp, found)]
    merge_kernel[(-(-QUERIES // BLOCK), BATCH * HEADS)](
        maximum, total, output, own, logsumexp, found, *sum(strides, ()), HEADS, QUERIES, len(states),
        HEAD_DIM=HEAD_DIM, TILE_M=BLOCK,
    )  # fmt: skip
    return found


@pytest.mark.parametrize(("num_states", "has_own"), [(1, False), (3, False), (0, True), (1, True), (3, True)])
def test_parts_of_the_keys_merge_into_attention_to_them_all(num_states, has_own):
    query, _ = keys_of(QUERIES, 9)
    pairs = [keys_of(count, seed) for seed, count in enumerate((5, 40, 17)[:num_states])]
    states = [state_of(query, *pair) for pair in pairs]
    own = logsumexp = None
    if has_own:
        pairs.append(keys_of(23, 7))
        key, value = pairs[-1]
        # Tokens before heads, as the library returns what it gets so.
        own = functional.scaled_dot_product_attention(query, key, value)
        own = own.transpose(1, 2).contiguous().transpose(1, 2)
        logsumexp = (query @ key.mT * HEAD_DIM**-0.5).logsumexp(-1).mT.contiguous().mT
    key, value = (torch.cat(side, 2) for side in zip(*pairs, strict=True))
    expected = functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(merged(states, own, logsumexp), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logsumexp", [-300.0, -5000.0, 300.0, 5000.0])
def test_the_larger_part_takes_it_all(logsumexp):
    query, _ = keys_of(QUERIES, 9)
    key, value = keys_of(40, 1)
    own, _ = keys_of(QUERIES, 2)
    found = merged([state_of(query, key, value)], own, torch.full((BATCH, HEADS, QUERIES), logsumexp))
    expected = functional.scaled_dot_product_attention(query, key, value) if logsumexp < 0 else own
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_split_without_keys_changes_nothing():
    query, _ = keys_of(QUERIES, 9)
    key, value = keys_of(40, 1)
    state = state_of(query, key, value)
    nothing = torch.full_like(state[0], -1.0e30), torch.zeros_like(state[1]), torch.zeros_like(state[2])
    torch.testing.assert_close(merged([nothing, state, nothing]), merged([state]), rtol=0, atol=0)
