"""The reference of the Python API, read from the signatures and docstrings of what `qvg_cli` exports."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import qvg_cli

HEAD = """# Python reference

Signatures and docstrings of everything in `import qvg_cli as qvg`. [Python API](../api.md) shows how to
use them.
"""


def api_page() -> str:
    """The whole page."""
    return (
        "\n\n".join([HEAD.strip(), *(part for name in qvg_cli.__all__ for part in _described(name))]) + "\n"
    )


def _described(name: str) -> Iterator[str]:
    """A class with its public methods and properties, or a function."""
    found = getattr(qvg_cli, name)
    yield f"## qvg.{name}"
    if not inspect.isclass(found):
        yield from _function(f"qvg.{name}", found)
        return
    yield _text(inspect.getdoc(found))
    for member, value in vars(found).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"### {name}.{member}"
            yield _text(inspect.getdoc(value))
        elif inspect.isroutine(getattr(found, member)):
            yield f"### {name}.{member}()"
            yield from _function(f"{name}.{member}", getattr(found, member))


def _function(title: str, function: Any) -> Iterator[str]:
    parameters = inspect.signature(function).parameters.values()
    # Annotations without quotes; a function as a default has no name worth showing.
    texts = [re.sub(r": '([^']*)'", r": \1", str(each)) for each in parameters if each.name != "self"]
    shown = [re.sub(r"<function [^>]*>( at \w+>)?", "...", text) for text in texts]
    starred = next((i for i, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY), None)
    if starred is not None and not any(text.startswith("*") for text in shown[:starred]):
        shown.insert(starred - ("self" in inspect.signature(function).parameters), "*")
    lines = "".join(f"    {text},\n" for text in shown)
    yield f"```python\n{title}(\n{lines})\n```" if lines else f"```python\n{title}()\n```"
    yield _text(inspect.getdoc(function))


def _text(docstring: str | None) -> str:
    """Google's sections as lists, examples as code."""
    out: list[str] = []
    section = ""
    for line in (docstring or "").splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields|Example):", line):
            section = line[:-1]
            out += ["", f"**{section}**", "", *(["```python"] if section == "Example" else [])]
        elif section == "Example":
            out.append(line.removeprefix("    "))
        elif section and (item := re.match(r"    (\*{0,2}\w+): (.*)", line)):
            out.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("    "):
            out.append(f"  {line.strip()}")
        else:
            out.append(line)
    if section == "Example":
        out.append("```")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()
