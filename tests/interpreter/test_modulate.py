"""A gated change, a norm and its modulation in one pass, beside the torch reference."""

import pytest
import torch

from qvg_kernels.norm.kernel import launch_add_norm, launch_norm_joined
from qvg_kernels.norm.modulate import add_gated, add_norm, norm_joined, norm_modulate

ITEMS, TOKENS, CHANNELS, EPS = 2, 7, 100, 1e-6


@pytest.fixture
def parts(monkeypatch):
    """Hidden states and a change `[B, S, C]`, and six modulation vectors `[B, 1, C]`; new memory is NaN."""
    generator = torch.Generator().manual_seed(0)
    hidden, change = torch.randn(2, ITEMS, TOKENS, CHANNELS, generator=generator)
    vectors = torch.randn(ITEMS, 6, CHANNELS, generator=generator).chunk(6, dim=1)
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda states: empty_like(states).fill_(float("nan")))
    return hidden, change, vectors


def test_all_at_once(parts):
    hidden, change, (shift, factor, gate, *_) = parts
    added, normed = launch_add_norm(hidden, change, gate, factor, shift, EPS)
    expected = add_norm(hidden, change, gate, factor, shift, EPS)
    torch.testing.assert_close(added, expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normed, expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_pass_has_the_bits_of_a_sum_and_then_a_norm(parts, dtype):
    hidden, change, (shift, factor, gate, *_) = parts
    hidden, change = hidden.to(dtype), change.to(dtype)
    out = torch.empty_like(hidden)
    added, normed = launch_add_norm(hidden, change, gate, factor, shift, EPS, out=out)
    assert added is out
    expected, _ = launch_add_norm(hidden, change, gate)
    assert added.equal(expected)
    assert normed.equal(launch_add_norm(expected, None, None, factor, shift, EPS)[1])


def test_the_norm_alone_with_one_vector_for_all_items(parts):
    hidden, _, (shift, factor, *_) = parts
    vectors = factor[0, 0].contiguous(), shift[0, 0].contiguous()
    added, normed = launch_add_norm(hidden, None, None, *vectors, EPS)
    assert added is hidden
    torch.testing.assert_close(normed, norm_modulate(hidden, *vectors, EPS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_gated", [False, True])
def test_the_sum_alone(parts, is_gated):
    hidden, change, vectors = parts
    gate = vectors[5] if is_gated else None
    # What does not lie in order, as heads that are joined again.
    change = change.transpose(1, 2).contiguous().transpose(1, 2)
    out = torch.empty_like(hidden)
    added, _ = launch_add_norm(hidden, change, gate, out=out)
    assert added is out
    torch.testing.assert_close(added, add_gated(hidden, change, gate), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_given", [False, True])
def test_norms_of_joined_projections(is_given):
    generator = torch.Generator().manual_seed(0)
    joined = torch.randn(ITEMS, TOKENS, 3 * CHANNELS, generator=generator)
    weights = torch.randn(2, CHANNELS, generator=generator)
    out = torch.full((3, 1, ITEMS * TOKENS, CHANNELS), float("nan")) if is_given else ()
    made = launch_norm_joined(joined, *weights, EPS, tuple(out))
    for part, expected in zip(made, norm_joined(joined, *weights, EPS), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)
    assert not is_given or made[0].data_ptr() == out.data_ptr()
