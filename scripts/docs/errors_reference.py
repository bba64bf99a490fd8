"""The reference of error messages, read from every `raise` of the library."""

from __future__ import annotations

import ast
import html
import re
from dataclasses import dataclass
from pathlib import Path

from qvg_cli import errors

LIBRARY = Path(errors.__file__).parent
CODES = {
    kind.__name__: kind.exit_code
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.QvgError)
}
TITLES = {
    2: "Exit code 2: the request is invalid",
    3: "Exit code 3: weights, access or ffmpeg are missing",
    4: "Exit code 4: out of memory",
    1: "Exit code 1: the run failed",
}
AREAS = {
    "commands": "Commands",
    "config": "Settings",
    "planning": "Planning: lengths, GPUs, prompt files",
    "engine": "Videos: sources, prompts, processes",
    "models": "Models",
    "cache": "Cache",
    "hub": "Downloads",
    "video": "Video files",
    "runs": "Runs and resuming",
    "comparison": "Comparisons",
    "batch": "Batches",
    "play": "Play",
    "report": "Reports",
}
HEAD = """# Error messages

Every error names the value, the limit and what to do, and each kind has an exit code. `--debug` shows the
traceback. What stands in `<...>` is filled in by the message. For the common cases see
[Troubleshooting](../troubleshooting.md).
"""


@dataclass(frozen=True)
class Message:
    """One `raise`."""

    code: int
    area: str
    text: str
    hint: str


def errors_page() -> str:
    """The page, one table for each exit code and part of the program."""
    messages = [message for path in sorted(LIBRARY.rglob("*.py")) for message in read_messages(path)]
    parts = [HEAD]
    for code, title in TITLES.items():
        of_code = [message for message in messages if message.code == code]
        if not of_code:
            continue
        parts.append(f"## {title}\n")
        for area in sorted({message.area for message in of_code}, key=[*AREAS.values(), ""].index):
            rows = sorted({(m.text, m.hint) for m in of_code if m.area == area})
            table = ["| message | remedy |", "|---|---|", *(f"| {text} | {hint} |" for text, hint in rows)]
            parts.append((f"### {area}\n\n" if area else "") + "\n".join(table) + "\n")
    return "\n".join(parts)


def read_messages(path: Path) -> list[Message]:
    """The errors that a file makes whose text is written there."""
    area = AREAS.get(path.relative_to(LIBRARY).parts[0], "")
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        code = CODES.get(node.func.id)
        text = written(node.args[0])
        if code not in TITLES or not text or not re.sub(r"<[^>]*>", "", text).strip(" :.,"):
            continue
        hints = [written(keyword.value) for keyword in node.keywords if keyword.arg == "hint"]
        found.append(Message(code, area, cell(text), cell(hints[0]) if hints and hints[0] else ""))
    return found


def written(node: ast.expr) -> str | None:
    """The text of a string with `<name>` in place of what is filled in; `None` if it is not written there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"<{name_of(part)}>"
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = written(node.left), written(node.right)
        return "".join(side or "<...>" for side in sides) if any(sides) else None
    return None


def name_of(node: ast.expr) -> str:
    """What is filled in, by the name that the code has for it."""
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    name = inner.id if isinstance(inner, ast.Name) else inner.attr if isinstance(inner, ast.Attribute) else ""
    return name if name.islower() and name != "name" and not name.startswith("_") else "..."


def cell(text: str) -> str:
    """A text as it may stand in a table."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    print(errors_page())
