"""Prompt files by line, and words that the pocket model does not know."""

import json

import pytest

from qvg_cli.errors import UsageError
from qvg_cli.planning.prompts import Job, check_prompt, read_jobs, read_schedule, unknown_words


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
        ('{"prompt": "a", "name": ""}', "name='' is not text"),
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
        ("p.txt", b"\n \n", "{} contains no prompt"),
        ("p.txt", b"ok\n\xff\n", "{} line 2: it is not UTF-8 text"),
        ("p.txt", b"ok\na\x00b\n", "{} line 2: character 2 is U+0000, a control character"),
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


@pytest.mark.parametrize(
    "prompt",
    [
        "\u06cc\u06a9 \u062e\u0627\u0646\u0647\u200c\u06cc red ball",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\u200ered ball\u200f",
        "foot\u00adball",
        "\U0001fae9 newer than this Python",
        "e\u0301 and \u00e9",
        "a\u0085b\u2028c\u2029d\te",
        "noncharacters \ufffe \uffff \ufdd0 \U0010ffff",
        "\ufeffmark",
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".TXT", ".JSONL"])
def test_every_other_character_is_taken_as_it_is(tmp_path, prompt, suffix):
    file = tmp_path / f"p{suffix}"
    line = prompt if suffix.lower() == ".txt" else json.dumps({"prompt": prompt})
    file.write_text(f"first\n{line}\n" if suffix.lower() == ".txt" else f'{{"prompt": "first"}}\n{line}\n')
    assert read_jobs(file) == [Job("first"), Job(prompt)]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a\x07b", "the prompt: character 2 is U+0007, a control character"),
        ("  a\x1b[31m", "the prompt: character 4 is U+001B, a control character"),
        ("ab\x9b", "the prompt: character 3 is U+009B, a control character"),
        ("\x1fa", "the prompt: character 1 is U+001F, a control character"),
        ("\ud83da", "the prompt: character 1 is U+D83D, half of a character (a lone surrogate)"),
        ("caf\udce9", "the prompt: character 4 is the byte 0xE9, which is not UTF-8"),
    ],
)
def test_what_no_text_holds_is_refused_by_name_and_place(prompt, message):
    with pytest.raises(UsageError) as caught:
        check_prompt(prompt)
    assert str(caught.value) == message


def test_a_prompt_longer_than_run_yaml_can_hold_is_refused():
    assert len(check_prompt("\U0001f468" * 50_000)) == 50_000
    with pytest.raises(UsageError, match="is 500010 characters long when written out; the limit is 500000"):
        check_prompt("\U0001f468" * 50_001)


def test_comments_are_no_prompts(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeff# my prompts\na ball # one\n  #another\na cube\r\n".encode())
    assert read_jobs(file) == [Job("a ball # one"), Job("a cube")]


def test_a_file_in_utf_16_is_named_once(tmp_path):
    file = tmp_path / "p.txt"
    file.write_bytes("a ball\na cube\n".encode("utf-16"))
    with pytest.raises(UsageError) as caught:
        read_jobs(file, [])
    assert str(caught.value) == f"cannot read {file}: it is not UTF-8 text"
    assert caught.value.hint == "it looks like UTF-16; save it as UTF-8"


def test_a_schedule_is_read_past_its_byte_order_mark(tmp_path):
    file = tmp_path / "s.JSONL"
    file.write_bytes('\ufeff# from here on\r\n{"frame": 0, "prompt": "a\\u0085b"}\r\n'.encode())
    assert [(entry.prompt, entry.begin) for entry in read_schedule(file)] == [("a\x85b", 0)]
