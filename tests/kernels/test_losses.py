"""What packing does to attention, on weights that can be worked out by hand."""

import math

import pytest
import torch

from qvg_kernels.attention.losses import logit_losses


def losses(exact, found, own=-math.inf):
    """Of one query of one head."""
    as_logits = lambda values: torch.tensor(values)[None, None, None]  # noqa: E731
    found = logit_losses(as_logits(exact), as_logits(found), torch.full((1, 1, 1), own))
    return {name: value.item() for name, value in vars(found).items()}


def test_equal_keys_lose_nothing():
    found = losses([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], own=1.0)
    assert found.pop("variance") == pytest.approx(2 / 3)
    assert set(found.values()) == {0.0}


def test_weights_that_swap_have_moved_and_shift():
    three_to_one = math.log(3)
    found = losses([three_to_one, 0.0], [0.0, three_to_one])
    assert found["token_shift"] == 1
    assert found["attention_moved"] == pytest.approx(0.5)
    assert found["history_mass"] == pytest.approx(0, abs=1e-6)
    assert found["squared_error"] == pytest.approx(three_to_one**2)


def test_what_the_packed_keys_gain_the_others_lose():
    found = losses([0.0], [math.log(3)], own=0.0)
    assert found["history_mass"] == pytest.approx(0.25)
    assert found["attention_moved"] == pytest.approx(0.25)
    assert found["token_shift"] == 0


def test_of_equal_keys_the_first_is_the_best():
    assert losses([1.0, 1.0, 0.0], [1.0, 0.5, 0.0])["token_shift"] == 0
    assert losses([1.0, 1.0, 0.0], [0.5, 1.0, 0.0])["token_shift"] == 1
