"""Shaped errors: the moment that keys meet, the matrix that is made of it, and what it saves."""

import itertools
import re

import pytest
import torch

from qvg_kernels.codecs.fitted.shaping import shaping_matrix
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.rope.moments import FRAMES, placed_moment
from qvg_kernels.rope.placement import Rotary
from qvg_kernels.rope.tables import RotaryTables
from qvg_kernels.spec import FittedSpec

from .conftest import REPOSITORY

CPU = torch.device("cpu")


def rotations(rows, columns, head_dim):
    """The matrix that turns the key of each token of `FRAMES + 1` frames."""
    frames = tuple(range(FRAMES + 1))
    placement = Rotary(RotaryTables.of(head_dim, FRAMES + 1, CPU), rows, columns, frames)
    tokens = len(frames) * rows * columns
    one = torch.eye(head_dim)[:, None].expand(-1, tokens, -1)
    return placement.apply(one[None], slice(0, tokens))[0].permute(1, 2, 0).double()


def test_the_moment_that_keys_meet_is_the_mean_over_all_places():
    rows, columns, head_dim = 2, 3, 64
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(70, head_dim, generator=generator, dtype=torch.float64)
    moment = query.T @ query
    turns = rotations(rows, columns, head_dim).unflatten(0, (FRAMES + 1, rows * columns))
    expected = torch.zeros_like(moment)
    for back, here, there in itertools.product(range(1, FRAMES + 1), *[range(rows * columns)] * 2):
        turn = turns[FRAMES, here].T @ turns[FRAMES - back, there]
        expected += turn.T @ moment @ turn
    expected /= FRAMES * (rows * columns) ** 2
    torch.testing.assert_close(placed_moment(moment, rows, columns), expected, rtol=1e-5, atol=1e-3)
    assert (moment - expected).norm() > 0.1 * moment.norm()


def span_of(tokens=600, head_dim=64):
    """Values of a few directions, and queries of others, `[1, 2, S, D]`."""
    generator = torch.Generator().manual_seed(1)
    spectrum = torch.logspace(0, -1.5, head_dim)
    turn = torch.linalg.qr(torch.randn(2, 2, head_dim, head_dim, generator=generator)).Q
    span, query = torch.randn(2, 1, 2, tokens, head_dim, generator=generator) * spectrum @ turn.unsqueeze(1)
    return span, query


@pytest.mark.parametrize(("shaping", "least_db"), [("key", 2.0), ("value", 2.0)])
def test_shaped_errors_are_heard_less(shaping, least_db):
    span, query = span_of()
    heard = []
    for kind in ("none", shaping):
        codec, shaper = build_codec(FittedSpec(shaping=kind)), None
        if kind != "none":
            matrix = codec.shaping_matrix(codec.residual_moment(span, seed=1), (query.mT @ query).double())
            shaper = codec.shaper_of(matrix)
        error = codec.decode(codec.encode(span, seed=1, shaper=shaper)) - span
        heard.append((error @ query.mT if shaping == "key" else error).square().sum())
    assert 10 * torch.log10(heard[0] / heard[1]) > least_db


@pytest.mark.parametrize("shaping", ["key", "value"])
def test_the_matrix_undoes_what_encoding_does(shaping):
    span, query = span_of()
    codec = build_codec(FittedSpec(grid="int4", shaping=shaping))
    matrix = codec.shaping_matrix(codec.residual_moment(span, seed=1), (query.mT @ query).double())
    assert torch.equal(matrix, matrix.mT)
    shaper = codec.shaper_of(matrix)
    one = matrix.float() @ shaper.inverse.float()
    torch.testing.assert_close(one, torch.eye(64).expand_as(one), rtol=0, atol=2e-3)
    error = (codec.decode(codec.encode(span, seed=1, shaper=shaper)) - span).square().sum()
    assert error < 0.02 * span.square().sum()


def test_nothing_to_learn_from_shapes_nothing():
    nothing = torch.zeros(1, 1, 64, 64)
    for query in (nothing, None):
        matrix = shaping_matrix(nothing, query)
        torch.testing.assert_close(matrix[0, 0].float(), torch.eye(64), rtol=0, atol=1e-6)


def test_the_pages_matrices_are_those_that_are_made():
    page = (REPOSITORY / "docs" / "cache-format.md").read_text()
    residual, query = torch.diag(torch.tensor([16.0, 1.0])), torch.diag(torch.tensor([1.0, 4.0]))
    for name, moment in (("values, M = 1", None), ("keys, `1 0, 0 4`", query)):
        line = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", page, re.MULTILINE).group(1)
        numbers = [float(number) for number in line.split("|")[-1].strip(" `").split()]
        assert shaping_matrix(residual, moment).diagonal().tolist() == numbers
