"""The grammar that ships with the weights, the scenes it can name and the tokenizer built from it."""

import torch

from scripts.pocket.prompts import Grammar
from scripts.pocket.scenes import CAMERAS, COLORS, GROUNDS, MOTIONS, SHAPES, SIZES, SKIES
from scripts.pocket.tokenizer import TEXT_LENGTH, build_tokenizer


def test_grammar_names_exactly_what_the_renderer_can_draw():
    tables = {
        "size": SIZES,
        "color": COLORS,
        "shape": SHAPES,
        "motion": MOTIONS,
        "ground": GROUNDS,
        "sky": SKIES,
        "camera": CAMERAS,
    }
    concepts = Grammar.load().taught
    assert {name: set(values) for name, values in concepts.items()} == {n: set(t) for n, t in tables.items()}


def test_no_phrase_names_two_values():
    for values in Grammar.load().taught.values():
        phrases = [phrase for group in values.values() for phrase in group]
        assert len(phrases) == len(set(phrases))


def test_only_the_default_of_a_concept_may_go_unmentioned():
    for values in Grammar.load().taught.values():
        first, *others = values.values()
        assert all("" not in phrases for phrases in others)
        assert first


def test_evaluation_draws_no_value_that_is_not_promised():
    grammar, generator = Grammar.load(), torch.Generator().manual_seed(0)
    specs = [grammar.sample_spec(generator, held_out=True) for _ in range(50)]
    assert {spec.shape for spec in specs} == set(grammar.concepts["shape"])
    assert not set(grammar.rough["shape"]) & set(grammar.concepts["shape"])


def test_held_out_scenes_are_never_drawn_for_training():
    grammar, generator = Grammar.load(), torch.Generator().manual_seed(0)
    assert not any(grammar.sample_spec(generator).is_held_out for _ in range(200))
    assert all(grammar.sample_spec(generator, held_out=True).is_held_out for _ in range(20))


def test_prompts_have_no_gaps_and_fit_the_text_length():
    grammar, generator = Grammar.load(), torch.Generator().manual_seed(0)
    tokenizer = build_tokenizer(grammar)
    for _ in range(200):
        prompt = grammar.sample_prompt(grammar.sample_spec(generator), generator)
        assert "  " not in prompt
        assert " ," not in prompt
        assert prompt[0].isupper()
        assert len(tokenizer(prompt)["input_ids"]) <= TEXT_LENGTH


def test_words_of_the_grammar_are_one_token_and_others_are_spelled():
    grammar = Grammar.load()
    tokenizer = build_tokenizer(grammar)
    assert [len(tokenizer(word)["input_ids"]) for word in grammar.words()] == [2] * len(grammar.words())
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("A DRAGON, red!")["input_ids"])
    assert tokens == ["▁a", "▁d", "r", "a", "g", "o", "n", ",", "▁red", "!", "</s>"]
