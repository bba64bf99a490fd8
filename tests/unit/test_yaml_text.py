"""YAML says what it means: traps are refused by line, and what we write is read back."""

import pytest

from qvg_cli.config.yaml_text import format_yaml, parse_yaml
from qvg_cli.errors import UsageError


@pytest.mark.parametrize(
    "value",
    ["yes", "No", "on", "OFF", "y", "12:30", "1:30.5", "010", "0o17", "1e-4", "5E3", "1.5e3", "1_000"],
)
def test_a_value_that_readers_take_differently_is_refused(value):
    with pytest.raises(UsageError, match=r"^f.yaml line 2: .* is unclear: ") as caught:
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
        ("1: a\n", "f.yaml line 1: a setting's name must be a text"),
        ("a: !!python/object:os.system x\n", "f.yaml line 1: could not determine a constructor"),
        ("a: 1\n---\na: 2\n", "f.yaml line 2: but found another document"),
        ("a: 2026-01-01\n", "f.yaml line 1: 2026-01-01 is unclear: YAML takes it for a date"),
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
