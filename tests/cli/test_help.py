"""The program answers at once, says what its exit codes mean, and the documentation says the same."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qvg_cli import __version__
from qvg_cli.main import app

ROOT = Path(__file__).parents[2]


def test_help_loads_nothing_heavy():
    heavy = ("torch", "pydantic", "numpy", "rich", "yaml")
    code = f"import sys, qvg_cli.main; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_model_is_loaded_without_what_others_need_of_the_libraries():
    code = (
        "import sys; from qvg_cli import lean_imports; lean_imports.begin();"
        "from qvg_cli.config.load import Request; from qvg_cli.engine.engine import Engine;"
        "engine = Engine.load(pocket=True); engine.pipeline._models.transformer;"
        "heavy = ('torch._dynamo', 'scipy', 'transformers');"
        "print([name for name in heavy if name in sys.modules]);"
        "import torch._dynamo, scipy, transformers; assert torch._dynamo.disable(print) is not print"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"qvg {__version__}\n")


def test_help_documents_every_exit_code():
    for arguments in (["--help"], ["generate", "--help"]):
        lines = CliRunner().invoke(app, arguments).stdout.splitlines()
        codes = [line.split()[0] for line in lines[lines.index("  Exit codes:") + 1 :] if line.strip()]
        assert codes == ["0", "1", "2", "3", "4", "75", "130"]


def test_help_has_no_colour_and_no_boxes(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert CliRunner().invoke(app, ["generate", "--help"]).stdout.isascii()


def test_the_documented_help_is_fresh():
    script = ROOT / "scripts" / "write_cli_docs.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)
