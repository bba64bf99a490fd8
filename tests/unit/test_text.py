"""Prompt embeddings."""

import html

import ftfy
import pytest
import torch

from qvg_cli.models.text import PromptWarning, TextEncoder, clean_prompt


@pytest.fixture(scope="module")
def encoder(tiny_weights):
    return TextEncoder(tiny_weights, 12, torch.device("cpu"), torch.float32)


def test_rows_after_the_prompt_are_zero_and_the_prompts_own_do_not_depend_on_them(encoder, tiny_weights):
    read = encoder.encode("a b")
    states = read.padded(12)
    assert states.shape[:2] == (1, 12)
    length = int(states[0].any(dim=1).sum())
    assert 0 < length == read.num_tokens < 12
    longer = TextEncoder(tiny_weights, 20, torch.device("cpu"), torch.float32).encode("a b").padded(20)
    torch.testing.assert_close(longer[:, :length], states[:, :length])
    assert not longer[:, length:].any()


def test_a_prompt_that_is_cut_is_said_to_be(encoder):
    read = encoder.encode("a b c d e f g h i j k l m n o p q r s t u v w x y z")
    assert len(read.rows) == 12
    with pytest.warns(PromptWarning, match="tokens, but the model reads only 12: the rest is ignored"):
        read.padded(12)


@pytest.mark.parametrize(
    "prompt",
    ["a red ball", "a < b; 'c' \"d\"\t\\ x", "a\r\nb", "\x1b[31mred", "&lt;b&gt;", "caf\u00c3\u00a9"],
)
def test_plain_text_is_cleaned_as_by_ftfy(prompt):
    assert clean_prompt(prompt) == " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def test_white_space_and_escapes_are_cleaned():
    assert clean_prompt("  a\n red &amp;amp; blue\tball ") == "a red & blue ball"
