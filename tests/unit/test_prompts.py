"""Prompt files by line, and words that the pocket model does not know."""

import pytest

from qvg_cli.errors import UsageError
from qvg_cli.planning.prompts import Job, check_prompt, read_jobs, unknown_words


def test_a_text_file_holds_a_prompt_a_line(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffa red ball\n\n  a blue cube \r\nля\n".encode())
    assert read_jobs(file) == [Job("a red ball"), Job("a blue cube"), Job("ля")]


def test_a_jsonl_file_holds_an_object_a_line(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a ball"}\n\n{"prompt": "b", "seed": 7, "name": "x"}\n')
    assert read_jobs(file) == [Job("a ball"), Job("b", 7, "x")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("[1]", "no text under prompt"),
        ('{"prompt": 3}', "no text under prompt"),
        ('{"prompt": "  "}', "prompt is empty"),
        ('{"prompt": "a", "sed": 3}', "unknown key 'sed'"),
        ('{"prompt": "a", "seed": -1}', "seed=-1 is not a whole number from 0 to 2**63 - 1"),
        ('{"prompt": "a", "seed": true}', "seed=True is not a whole number from 0 to 2**63 - 1"),
        ('{"prompt": "a", "name": ""}', "name='' is not a text"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, message):
    file = tmp_path / "p.jsonl"
    file.write_text(f'{{"prompt": "good"}}\n{line}\n')
    with pytest.raises(UsageError) as caught:
        read_jobs(file)
    assert str(caught.value) == f"{file} line 2: {message}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"a", "{}: prompts are read from .txt or .jsonl"),
        ("p.txt", b"\n \n", "{} holds no prompt"),
        ("p.txt", b"ok\n\xff\n", "{} line 2: it is not UTF-8 text"),
        ("p.txt", b"ok\na\x00b\n", "{} line 2 holds characters that cannot be printed"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_jobs(file)
    assert str(caught.value) == message.format(file)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(UsageError, match="the prompt is empty"):
        check_prompt(prompt)


def test_words_outside_the_pocket_grammar_are_found():
    assert unknown_words("A large RED ball bounces on grass, the camera orbits.", "self-forcing") == []
    assert unknown_words("Two dragons and a red ball, 猫", "self-forcing") == ["two", "dragons", "猫"]


def test_a_family_with_a_smaller_world_knows_fewer_words():
    assert unknown_words("A red ball on grass at sunset", "hyworldplay") == []
    assert unknown_words("A red ball bounces", "hyworldplay") == ["bounces"]
