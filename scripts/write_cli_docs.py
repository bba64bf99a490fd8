"""Write docs/cli.md from the --help of every command; with --check, only say whether it is fresh."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from qvg_cli.main import app

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """# The command line

What `--help` says, command by command. This file is written by `make docs`.
"""


def main() -> None:
    """Write or check the file."""
    text = render()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit(f"{TARGET} is not what --help says; run: make docs")


def render() -> str:
    """The whole file."""
    commands = typer.main.get_command(app).commands
    parts = [HEAD]
    for arguments in ([], *([name] for name in sorted(commands))):
        # The width of the terminal that runs this must not matter.
        result = CliRunner().invoke(
            app, [*arguments, "--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"}
        )
        title = " ".join(["qvg", *arguments])
        body = "\n".join(line.rstrip() for line in result.stdout.splitlines()).strip()
        parts.append(f"## {title}\n\n```console\n$ {title} --help\n{body}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
