"""What lies between a block's matrices, as a kernel on a GPU beside torch on a CPU, at the models' widths."""

import pytest
import torch

from qvg_kernels.norm.modulate import add_gated, add_norm, norm_joined, norm_modulate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BF16_ROUNDING = {"rtol": 2**-7, "atol": 2**-6}
"""A step of its size; of a sum near zero, a step of its terms."""


@pytest.mark.parametrize("channels", [1536, 3072])
def test_sums_norms_and_modulations(channels):
    generator = torch.Generator().manual_seed(0)
    hidden, change = torch.randn(2, 2, 333, channels, generator=generator).bfloat16()
    gate, factor, shift = torch.randn(2, 6, channels, generator=generator)[:, :3].chunk(3, dim=1)
    inputs = hidden, change, gate, factor, shift

    def compute(hidden, change, gate, factor, shift):
        weight, bias = factor[0, 0].bfloat16(), shift[0, 0].bfloat16()
        return (
            *add_norm(hidden, change, gate, factor, shift, 1e-6),
            *add_norm(hidden, change, None, weight, bias, 1e-6),
            norm_modulate(hidden, factor, shift, 1e-6),
            add_gated(hidden, change, gate),
        )

    for made, expected in zip(compute(*(each.cuda() for each in inputs)), compute(*inputs), strict=True):
        torch.testing.assert_close(made.cpu(), expected, **BF16_ROUNDING)


@pytest.mark.parametrize("channels", [1536, 3072])
def test_norms_of_joined_projections(channels):
    generator = torch.Generator().manual_seed(0)
    joined = torch.randn(2, 333, 3 * channels, generator=generator).bfloat16()
    weights = torch.randn(2, channels, generator=generator).bfloat16()
    expected = norm_joined(joined, *weights, 1e-6)
    out = torch.empty_like(torch.stack(expected)).cuda()
    made = norm_joined(joined.cuda(), *weights.cuda(), 1e-6, tuple(out))
    for part, needed in zip(made, expected, strict=True):
        torch.testing.assert_close(part.cpu(), needed, **BF16_ROUNDING)
