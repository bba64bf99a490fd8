"""The matrix that shapes a head's rounding errors: small where queries look, large where values vary.

With isotropic noise in the space of `A x`, an error e of a key costs a logit `e^T M e`, M the moment of the
queries as the key meets them, and what the codebook leaves has the covariance S. The noise grows with the
trace of `A S A^T`, so that `tr(A^-T M A^-1) tr(A S A^T)` is to be least: `A^2` is the geometric mean of M and
the inverse of S (Pusz and Woronowicz 1975). An error of a value costs the same in all directions: M is 1.
Scales of M and S do not matter.
"""

import torch
from torch import Tensor

RIDGE = 0.01
"""Added to the diagonals of M and S, of their mean: the condition of the matrix stays below about 15."""

TINY = 1e-30
"""Stands in for a mean of zero."""


def shaping_matrix(residual: Tensor, query: Tensor | None) -> Tensor:
    """The inverse of A of each head, symmetric: `[..., D, D]` bf16, as blocks are decoded with it.

    Args:
        residual: `[..., D, D]` second moment of what a codebook leaves of values, in any unit.
        query: Likewise, of queries as keys meet them; `None` for values.
    """
    spread, vectors = torch.linalg.eigh(_ridged(residual))
    if query is None:
        root = spread.pow(-0.25)
    else:
        # G = S^-1/2 (S^1/2 M S^1/2)^1/2 S^-1/2, in the axes of S.
        half = spread.sqrt()
        inner = half.unsqueeze(-1) * (vectors.mT @ _ridged(query) @ vectors) * half.unsqueeze(-2)
        inner_values, inner_vectors = torch.linalg.eigh((inner + inner.mT) / 2)
        middle = _product(inner_vectors, inner_values.clamp(min=0).sqrt())
        mean = middle / half.unsqueeze(-1) / half.unsqueeze(-2)
        mean_values, mean_vectors = torch.linalg.eigh((mean + mean.mT) / 2)
        root, vectors = mean_values.clamp(min=TINY).sqrt(), vectors @ mean_vectors
    # The mean of A's diagonal becomes 1.
    matrix = _product(vectors, root.mean(-1, keepdim=True) / root)
    return ((matrix + matrix.mT) / 2).to(torch.bfloat16)


def inverse_of(matrix: Tensor) -> Tensor:
    """A of stored matrices: `[..., D, D]` float16, symmetric; does not wait for the device.

    Errors of A do not average out as others do: it has the 11 bits of float16, not the 8 of bf16.
    """
    found: Tensor = torch.linalg.inv_ex(matrix.double()).inverse
    return ((found + found.mT) / 2).half()


def _ridged(moment: Tensor) -> Tensor:
    # A block with a NaN is refused when it is packed, which on a GPU is found out later.
    moment = moment.double().nan_to_num(0, 0, 0)
    ridge = RIDGE * moment.diagonal(dim1=-2, dim2=-1).mean(-1) + TINY
    return moment + ridge[..., None, None] * torch.eye(moment.shape[-1], device=moment.device)


def _product(vectors: Tensor, values: Tensor) -> Tensor:
    """`V diag(values) V^T`."""
    return (vectors * values.unsqueeze(-2)) @ vectors.mT
