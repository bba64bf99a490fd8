"""Streamed attention equals attention over everything at once, whatever the workspace."""

import pytest
import torch

from qvg_kernels.attention.history import Workspace
from qvg_kernels.attention.reference import attend_in_torch


class Stored:
    """Plain keys and values as a segment."""

    def __init__(self, keys, values):
        self.keys, self.values = keys, values
        self.num_tokens = keys.shape[2]

    def read(self, heads, tokens):
        return self.keys[:, heads, tokens], self.values[:, heads, tokens]


@pytest.mark.parametrize("limit_bytes", [2**30, 60_000, 20_000, 4_000, 1])
def test_workspace_size_does_not_change_the_result(limit_bytes):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 17, 32, generator=generator) * 4
    lengths = (5, 1, 40, 7)
    pairs = [
        (torch.randn(2, 3, n, 32, generator=generator), torch.randn(2, 3, n, 32, generator=generator))
        for n in lengths
    ]
    keys, values = (torch.cat(parts, dim=2) for parts in zip(*pairs, strict=True))
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
    workspace = Workspace(limit_bytes)
    found = attend_in_torch(query, [Stored(*pair) for pair in pairs], workspace)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    one_token_of_one_head = 2 * 2 * 32 * 4
    assert workspace.held_bytes <= max(limit_bytes, one_token_of_one_head)


def test_sums_stay_in_float32_for_bf16_inputs():
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(1, 1, n, 64, generator=generator).bfloat16() for n in (4, 3000, 3000))
    exact = torch.nn.functional.scaled_dot_product_attention(query.double(), keys.double(), values.double())
    found = attend_in_torch(query, [Stored(keys, values)], Workspace(20_000))
    assert (found.double() - exact).norm() / exact.norm() < 0.01


def test_views_of_a_workspace_are_made_once_until_it_grows():
    def beginning(buffer, size):
        return buffer[:size]

    workspace = Workspace()
    workspace.take(64, torch.device("cpu"))
    view = workspace.keep(beginning, 32)
    assert workspace.keep(beginning, 32) is view
    grown = workspace.take(128, torch.device("cpu"))
    assert workspace.keep(beginning, 32).data_ptr() == grown.data_ptr()
