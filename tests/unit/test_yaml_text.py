"""YAML says what it means: traps are refused by line, and what we write is read back."""

import random

import pytest

from qvg_cli.config.yaml_text import format_yaml, parse_yaml
from qvg_cli.errors import UsageError
from qvg_cli.text_files import find_refused


@pytest.mark.parametrize(
    "value",
    ["yes", "No", "on", "OFF", "y", "12:30", "1:30.5", "010", "0o17", "1e-4", "5E3", "1.5e3", "1_000"],
)
def test_a_value_that_readers_take_differently_is_refused(value):
    with pytest.raises(UsageError, match=r"^f.yaml line 2: .* is ambiguous: ") as caught:
        parse_yaml(f"a: 1\nb: {value}\n", "f.yaml")
    assert f"'{value}'" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-3", -3),
        ("0.5", 0.5),
        ("1.0e-4", 1e-4),
        ("true", True),
        ("null", None),
        ("'yes'", "yes"),
        ('"1e-4"', "1e-4"),
        ("no way", "no way"),
        ("e5", "e5"),
    ],
)
def test_a_clear_value_is_read(text, value):
    assert parse_yaml(f"a: {text}", "f.yaml") == {"a": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "f.yaml line 4: 'c' is set twice"),
        ("a: [1, 2\nb: 3\n", "f.yaml line 2: expected ',' or ']', but got ':'"),
        ("1: a\n", "f.yaml line 1: the name of a setting must be text"),
        ("a: !!python/object:os.system x\n", "f.yaml line 1: could not determine a constructor"),
        ("a: 1\n---\na: 2\n", "f.yaml line 2: but found another document"),
        ("a: 2026-01-01\n", "f.yaml line 1: 2026-01-01 is ambiguous: YAML reads it as a date"),
    ],
)
def test_what_is_no_clear_yaml_is_refused_with_its_line(text, message):
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "f.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "text",
    ["yes", "12:30", "1e5", "010", "1_0", "null", "a: b", "- x", "# x", "", "日本", "two\nlines", "0", "'"],
)
def test_any_text_that_is_written_is_read_back(text):
    assert parse_yaml(format_yaml({"prompt": text, "nested": {"list": [text]}}), "f") == {
        "prompt": text,
        "nested": {"list": [text]},
    }


def test_a_schedule_of_thousands_of_prompts_is_read_back():
    values = {"prompt_changes": [{"frame": 12 * number, "prompt": "ball"} for number in range(1, 2002)]}
    assert parse_yaml(format_yaml(values), "f") == values


def _read_back(texts):
    for begin in range(0, len(texts), 400):
        part = texts[begin : begin + 400]
        assert parse_yaml(format_yaml({"prompt": part[0], "list": part}), "f") == {
            "prompt": part[0],
            "list": part,
        }


@pytest.mark.slow
def test_all_of_unicode_that_a_prompt_may_hold_is_read_back():
    taken = [chr(code) for code in range(0x110000) if not find_refused(chr(code))]
    assert len(taken) == 0x110000 - 0x800 - (65 - 6)
    _read_back(["".join(taken[begin : begin + 997]) for begin in range(0, len(taken), 997)])


@pytest.mark.parametrize("form", ["{}", "a{}b", "a {} b", "{} a", "a {}"])
def test_each_character_that_yaml_may_mind_is_read_back(form):
    codes = [*range(0x500), *range(0x2000, 0x2100), 0xD7FF, 0xE000, *range(0xFDCF, 0xFDF1)]
    codes += [0xFEFF, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x1FFFE, 0x10FFFE, 0x10FFFF]
    _read_back([form.format(chr(code)) for code in codes if not find_refused(chr(code))])


def test_texts_of_every_mixture_are_read_back():
    draw = random.Random(0)
    pool = "ab :#'\"\\-?,[]{}&*!|>%@`\n\t\r\x85\u2028\u2029\ufeff\u200b\xa0\ufdd0\ue000"
    _read_back(["".join(draw.choices(pool, k=draw.choice((1, 2, 3, 8, 130)))) for _ in range(2000)])


def test_a_line_break_of_old_yaml_is_a_character():
    assert parse_yaml("\ufeffa: one\x85two\u2028three\r\nb: 'x\u2029 y'\r\n", "f") == {
        "a": "one\x85two\u2028three",
        "b": "x\u2029 y",
    }


def test_two_escapes_of_json_are_one_character():
    assert parse_yaml('a: "\\ud83d\\ude00"', "f") == {"a": "\U0001f600"}


def test_a_control_character_is_named():
    with pytest.raises(UsageError, match=r"^f: character 4 is U\+0007, a control character$"):
        parse_yaml("a: \x07", "f")


def test_what_was_read_can_be_changed_without_changing_what_is_read_next():
    parse_yaml("a: [1]", "a file")["a"].append(2)
    assert parse_yaml("a: [1]", "a file") == {"a": [1]}
