"""Prompts from the command line and from files, and what the built-in model knows of them. No torch."""

import codecs
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from qvg_cli.config.resources import pocket_grammar
from qvg_cli.errors import UsageError
from qvg_cli.text_files import decode_text, find_refused

_SCHEDULE_UNITS = ("frame", "seconds", "chunk")
_SCHEDULE_EXAMPLE = '{"frame": 33, "prompt": "..."}'
_JOB_KEYS = ("prompt", "seed", "name")
_COMMENT = "#"
_MAX_WRITTEN = 500_000


@dataclass(frozen=True)
class Job:
    """One video to make, with its own seed and folder name, if it has such."""

    prompt: str
    seed: int | None = None
    name: str | None = None


def check_prompt(prompt: str, place: str = "the prompt") -> str:
    """`prompt` without white space around it; `UsageError` if empty, too long or with control characters."""
    text = prompt.strip()
    if not text:
        raise UsageError(
            f"{place} is empty", hint='describe the video, e.g. qvg generate "a red ball bounces"'
        )
    if refused := find_refused(prompt):
        raise UsageError(f"{place}: {refused}", hint="remove it; every other Unicode character is accepted")
    written = len(text.encode("ascii", "backslashreplace"))
    if written > _MAX_WRITTEN:
        # run.yaml has to hold it, and is read back only up to a size.
        raise UsageError(
            f"{place} is {written} characters long when written out; the limit is {_MAX_WRITTEN}"
        )
    return text


def prompt_of_argument(argument: str) -> str:
    """The prompt that an argument means: itself, or where it is -, all of stdin, which is UTF-8 text."""
    if argument != "-":
        return argument
    if sys.stdin is None:
        raise UsageError(
            "- reads the prompt from stdin, which is closed",
            hint='pass it as an argument: qvg generate "..."',
        )
    # Past what is taken, nobody waits for the rest.
    content = sys.stdin.buffer.read(4 * _MAX_WRITTEN)
    return decode_text(content, "cannot read the prompt from stdin").removeprefix("\ufeff")


def read_jobs(path: Path, bad: list[UsageError] | None = None) -> list[Job]:
    """The jobs of a .txt file, a prompt a line, or of a .jsonl file, an object with `prompt` a line.

    Empty lines, and those that begin with #, are left out. Without `bad`, which takes what is wrong with
    lines as long as another one is a job, a `UsageError` names the first of them.
    """
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".jsonl"):
        raise UsageError(
            f"{path}: prompts are read from .txt or .jsonl", hint="rename the file to match its content"
        )
    jobs: list[Job] = []
    refused: list[UsageError] = []
    for place, line in _lines(path):
        try:
            text = decode_text(line, place).strip()
            jobs.append(_parse_job(text, place) if suffix == ".jsonl" else Job(check_prompt(text, place)))
        except UsageError as error:
            if bad is None:
                raise
            refused.append(error)
    if not jobs:
        raise refused[0]
    if bad is not None:
        bad.extend(refused)
    return jobs


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every line with text that is no comment, and how messages call it; at least one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # Cut into lines by bytes, it would have as many wrong lines as it has lines.
        decode_text(content, f"cannot read {path}")
    is_empty = True
    for number, line in enumerate(content.splitlines(), start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        text = line.decode(errors="replace").strip()
        if text and not text.startswith(_COMMENT):
            is_empty = False
            yield f"{path} line {number}", line
    if is_empty:
        raise UsageError(f"{path} contains no prompt", hint="write one prompt per line")


def _parse_object(text: str, place: str, example: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or brackets in brackets without end.
        raise UsageError(f"{place}: not readable JSON") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise UsageError(f"{place}: no text under prompt", hint=f"a line looks like {example}")
    return entry


def _parse_job(text: str, place: str) -> Job:
    job = _parse_object(text, place, '{"prompt": "...", "seed": 7}')
    unknown = [key for key in job if key not in _JOB_KEYS]
    if unknown:
        raise UsageError(f"{place}: unknown key {unknown[0]!r}", hint=f"known: {', '.join(_JOB_KEYS)}")
    seed, name = job.get("seed"), job.get("name")
    is_seed = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63
    if seed is not None and not is_seed:
        raise UsageError(f"{place}: seed={seed!r} is not a whole number from 0 to 2**63 - 1")
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise UsageError(f"{place}: name={name!r} is not text")
    return Job(check_prompt(job["prompt"], f"{place}: prompt"), seed, name)


@dataclass(frozen=True)
class ScheduledPrompt:
    """A line of a schedule: a prompt, and where it begins; chunks count from 1, other units from 0."""

    prompt: str
    unit: str
    begin: float
    place: str

    @property
    def is_at_begin(self) -> bool:
        """Whether it begins with the first frame."""
        return self.begin == (1 if self.unit == "chunk" else 0)


def read_schedule(path: Path) -> list[ScheduledPrompt]:
    """The prompts of a .jsonl file, an object with `prompt` and one of `frame`, `seconds`, `chunk` a line."""
    if path.suffix.lower() != ".jsonl":
        raise UsageError(
            f"{path}: a schedule is read from .jsonl", hint="rename the file to match its content"
        )
    scheduled = []
    for place, line in _lines(path):
        entry = _parse_object(decode_text(line, place).strip(), place, _SCHEDULE_EXAMPLE)
        units = [key for key in entry if key != "prompt"]
        if len(units) != 1 or units[0] not in _SCHEDULE_UNITS:
            raise UsageError(
                f"{place}: next to prompt, one of {', '.join(_SCHEDULE_UNITS)} is needed",
                hint=f"a line looks like {_SCHEDULE_EXAMPLE}",
            )
        unit, begin = units[0], entry[units[0]]
        kinds = (int, float) if unit == "seconds" else (int,)
        least = 1 if unit == "chunk" else 0
        if not isinstance(begin, kinds) or isinstance(begin, bool) or not least <= begin < math.inf:
            raise UsageError(f"{place}: {unit}={begin!r} is not a number from {least} on")
        prompt = check_prompt(entry["prompt"], f"{place}: prompt")
        scheduled.append(ScheduledPrompt(prompt, unit, begin, place))
    return scheduled


def unknown_words(prompt: str, family: str) -> list[str]:
    """Words of `prompt` that the built-in model of `family` has never seen, in their order."""
    grammar = _grammar(family)
    templates = " ".join(grammar["templates"])
    known = set(_words(re.sub(r"{\w+}", " ", templates)))
    phrases = [each for concept in grammar["concepts"].values() for each in concept.values()]
    known.update(word for texts in (*phrases, grammar["fillers"]) for text in texts for word in _words(text))
    return [word for word in dict.fromkeys(_words(prompt)) if word not in known]


def pocket_examples(family: str) -> str:
    """What a prompt for the built-in model of `family` can name, for a message."""
    concepts = _grammar(family)["concepts"]
    return "; ".join(f"{concept}: {', '.join(values)}" for concept, values in concepts.items())


@cache
def _grammar(family: str) -> dict[str, Any]:
    return yaml.safe_load(pocket_grammar(family).read_text(encoding="utf-8"))


def _words(text: str) -> list[str]:
    # Letters of any script, so that a prompt in another language is seen as unknown and not as empty.
    return re.findall(r"[^\W\d_]+", text.lower())
