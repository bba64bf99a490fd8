"""The documentation says what the program does: commands that it shows, settings, errors, tables."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

import qvg_cli
from qvg_cli.main import app
from scripts.docs import write_tables
from scripts.docs.api_reference import api_page
from scripts.docs.errors_reference import errors_page
from scripts.docs.settings_reference import settings_page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shown_commands():
    """Every `qvg ...` of a console block, and of a table or a sentence, with the page that has it."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```(?:console|bash|yaml)[^\n]*\n(.*?)```", text, re.DOTALL)
        lines = [
            line.removeprefix("$ ").strip()
            for block in blocks
            # What a script passes on stands for anything.
            for line in re.sub(r'"\$@"|"\${@:2}"|\\\n', "", block).splitlines()
        ]
        commands = [line.removesuffix("&") for line in lines if line.startswith("qvg ")]
        commands += re.findall(r"`(qvg [a-z]+[^`]*)`", text)
        for command in commands:
            # In prose, ... and [OPTIONS] stand for what a reader fills in.
            if "[" not in command and "..." not in command and "--help" not in command:
                found.setdefault(command, page.relative_to(ROOT).as_posix())
    return [pytest.param(command, id=f"{page}: {command}") for command, page in found.items()]


@pytest.mark.parametrize("command", shown_commands())
def test_every_command_that_a_page_shows_can_be_parsed(command):
    name, *arguments = shlex.split(command, comments=True)[1:]
    commands = typer.main.get_command(app).commands
    assert name in commands
    commands[name].make_context(name, arguments)


def test_the_reference_of_settings_has_those_of_every_model_and_codec():
    page = settings_page()
    for setting in ("cache.workspace_mib", "sampler.context_noise", "walk.pad_pose", "cache.k.num_centroids"):
        assert f"`{setting}`" in page
    for preset in (ROOT / "configs" / "cache").glob("*.yaml"):
        assert f"| `{preset.stem}` |" in page


def test_the_reference_of_errors_has_messages_of_every_exit_code():
    page = errors_page()
    for code in (1, 2, 3, 4):
        assert f"## Exit code {code}" in page
    assert "has no memory | e.g. --gpu 24GiB |" in page


def test_the_reference_of_the_python_api_has_every_name():
    page = api_page()
    for name in qvg_cli.__all__:
        assert f"## qvg.{name}\n" in page
    assert "### Engine.generate()" in page
    assert "    seconds: float | None = None," in page
    assert "- `seed`: " in page


def test_every_page_is_in_the_navigation():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    shown = set(re.findall(r"[\w./-]+\.md", str(site["nav"])))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= shown
    assert shown - pages == {"reference/settings.md", "reference/errors.md", "reference/python.md"}


@pytest.mark.slow
def test_the_tables_of_models_and_gpus_are_those_of_the_planner(monkeypatch):
    monkeypatch.setattr("sys.argv", ["write_tables", "--check"])
    write_tables.main()
