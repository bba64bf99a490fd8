"""YAML in and out, without the traps: what a file seems to say is what it means.

YAML 1.1 reads `yes` as true, `12:30` as 750, `010` as 8 and `1e-4` as a text, and keeps the last of two equal
keys. Each is refused here with its line. It also breaks lines at U+0085, U+2028 and U+2029; here, as in
YAML 1.2, they are characters of their text. Text written here is always read back equal.
"""

import re
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import yaml

from qvg_cli.errors import UsageError
from qvg_cli.text_files import name_character

_NUMBER_TRAPS = (
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "some YAML parsers read it as base 60"),
    (re.compile(r"[-+]?0o?[0-9_]+"), "some YAML parsers read it as octal"),
    (re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+"), "YAML 1.1 reads it as text"),
    (re.compile(r"[-+]?[0-9]+_[0-9_]*(\.[0-9_]*)?"), "YAML parsers disagree about underscores in numbers"),
    (re.compile(r"\d{4}-\d\d?-\d\d?([Tt\s].*)?"), "YAML reads it as a date"),
)
_PROPER_FLOAT = re.compile(r"[-+]?\d+\.\d*([eE][-+]\d+)?")
_MAX_CHARACTERS = 1_000_000
_MAX_NODES = 200_000
"""More than a schedule of prompts has in a file of that length."""
_NEST_HINT = "settings are two or three levels deep and have no & or * names"
_OLD_BREAKS = "\x85\u2028\u2029"
"""Line breaks of YAML 1.1 only."""
_STAND_INS = tuple(map(chr, chain(range(0xFDD0, 0xFDF0), range(0xE000, 0xF900))))
"""Characters that a text hardly has, and that a YAML reader takes for letters."""
_TRUTH_TRAP = re.compile(r"y|yes|n|no|on|off", re.IGNORECASE)


def parse_yaml(text: str, source: str) -> Any:
    """The one document in `text`, which messages call `source`; `UsageError` if YAML readers differ on it."""
    # One command asks for the same preset ten times, and reading it takes longer than copying what was read.
    return deepcopy(_parse(text, source))


@lru_cache(maxsize=64)
def _parse(text: str, source: str) -> Any:
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(
            f"{source} has {len(text)} characters; the limit is {_MAX_CHARACTERS}", hint="use a settings file"
        )
    text, hidden = _hide_old_breaks(text)
    try:
        loader = yaml.SafeLoader(text)
        if (root := loader.get_single_node()) is None:
            return None
        # A few lines can stand for very many, through names for parts that hold such names.
        nodes = list(islice(_nodes(root), _MAX_NODES + 1))
        if len(nodes) > _MAX_NODES:
            raise UsageError(f"{source} expands to more than {_MAX_NODES} values", hint=_NEST_HINT)
        for node in nodes:
            if isinstance(node, yaml.ScalarNode):
                # JSON writes an emoji as two escapes, halves of a character that are joined here.
                halves = node.value.translate(hidden).encode("utf-16-le", "surrogatepass")
                node.value = halves.decode("utf-16-le", "surrogatepass")
        for node in nodes:
            _check_node(node, source)
        return loader.construct_document(root)
    except RecursionError as error:
        raise UsageError(f"{source}: brackets are nested too deeply", hint=_NEST_HINT) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UsageError(
            f"{_place(source, mark)}: {error.problem or error.context}",
            hint="put text with : or # or brackets in quotes",
        ) from error
    except yaml.reader.ReaderError as error:
        raise UsageError(
            f"{source}: character {error.position + 1} is {name_character(chr(error.character))}",
            hint="remove it, or write it as an escape in double quotes",
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        # Such as a number of thousands of digits.
        raise UsageError(f"{source}: {error}") from error


def format_yaml(values: dict[str, Any]) -> str:
    """`values` as YAML, keys in their order, texts in quotes where they could be taken for something else.

    `UsageError` if the text would be too long to be read back.
    """
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(
            f"the settings have {len(text)} characters as YAML; the limit is {_MAX_CHARACTERS}",
            hint="use fewer or shorter prompts",
        )
    return text


def _hide_old_breaks(text: str) -> tuple[str, dict[int, str]]:
    """`text` with stand-ins for the line breaks of YAML 1.1, and what each stands for."""
    found = [character for character in _OLD_BREAKS if character in text]
    free = (character for character in _STAND_INS if character not in text)
    stand_ins = dict(zip(found, free, strict=False))
    for character, stand_in in stand_ins.items():
        text = text.replace(character, stand_in)
    return text, {ord(stand_in): character for character, stand_in in stand_ins.items()}


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """All of a document in its order, what has several names as often as it is named."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, yaml.CollectionNode):
            parts = chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
            waiting += reversed([*parts])


def _place(source: str, mark: Any) -> str:
    is_option = source.startswith("--")
    return source if is_option or not mark else f"{source} line {mark.line + 1}"


def _check_node(node: yaml.Node, source: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            place = _place(source, key.start_mark)
            if not (isinstance(key, yaml.ScalarNode) and key.tag.endswith((":str", ":merge"))):
                raise UsageError(
                    f"{place}: the name of a setting must be text",
                    hint="put it in quotes" if isinstance(key, yaml.ScalarNode) else None,
                )
            if key.value in seen:
                raise UsageError(f"{place}: {key.value!r} is set twice", hint="keep one of them")
            seen.add(key.value)
    elif isinstance(node, yaml.ScalarNode) and node.style is None and (trap := _trap(node.value)):
        problem, remedy = trap
        place = _place(source, node.start_mark)
        raise UsageError(f"{place}: {node.value} is ambiguous: {problem}", hint=remedy)


def _trap(text: str) -> tuple[str, str] | None:
    """Why an unquoted value is unclear, and what to write instead; none where it is clear."""
    if _TRUTH_TRAP.fullmatch(text):
        return "some YAML parsers read it as true or false", f"write true or false, or '{text}' for the word"
    if text == "0" or _PROPER_FLOAT.fullmatch(text):
        return None
    for pattern, problem in _NUMBER_TRAPS:
        if pattern.fullmatch(text):
            return problem, f"write a plain number such as 1500, 0.0001 or 1.0e-4, or '{text}' for text"
    return None


class _Dumper(yaml.SafeDumper):
    pass


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _trap(text) else None
    if any(character in text for character in _OLD_BREAKS):
        # Written as escapes, so that readers of YAML 1.1 keep them too.
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    """Numbers share a line."""
    is_plain = all(isinstance(item, int | float) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=is_plain)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
