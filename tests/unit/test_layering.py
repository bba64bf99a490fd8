"""The house keeps its shape: imports run one way, planning needs no torch, `kernels` is no package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up; a file may import from its own layer and those before it.
LAYERS = (
    ("qvg_kernels",),
    (
        "qvg_cli.errors",
        "qvg_cli.environment",
        "qvg_cli.interrupts",
        "qvg_cli.text_files",
        "qvg_cli.randomness",
        "qvg_cli.redaction",
        "qvg_cli.logs",
        "qvg_cli",
        "qvg_cli.plotting",
    ),
    ("qvg_cli.config", "qvg_cli.planning"),
    ("qvg_cli.files", "qvg_cli.device", "qvg_cli.console"),
    ("qvg_cli.cache", "qvg_cli.video"),
    ("qvg_cli.models",),
    ("qvg_cli.engine", "qvg_cli.hub"),
    ("qvg_cli.report", "qvg_cli.runs", "qvg_cli.comparison"),
    ("qvg_cli.commands", "qvg_cli.comparison.run"),
    ("qvg_cli.main", "qvg_cli.__main__"),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

WITHOUT_TORCH = (
    "qvg_cli.main",
    "qvg_cli.planning.chunks",
    "qvg_cli.config.schema",
    "qvg_cli.config.load",
    "qvg_cli.models.registry",
    "qvg_cli.models.self_forcing.family",
    "qvg_cli.models.hyworldplay.family",
    "qvg_cli.models.longcat.family",
    "qvg_cli.hub.plan",
    "qvg_cli.hub.store",
    "qvg_cli.planning.cache_forecast",
    "qvg_cli.planning.cache_plan",
    "qvg_cli.comparison.variants",
    "qvg_cli.engine.jobs",
    "qvg_cli.engine.suggestions",
    "qvg_cli.commands.show_plan",
    "qvg_cli.engine.sources",
    "qvg_cli.planning.forecast",
    "qvg_cli.report.forecasts",
    "qvg_cli.report.html",
    "qvg_cli.models.self_forcing.plan",
    "qvg_kernels.spec",
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module):
    name = module
    while name not in LAYER_OF or (name == "qvg_cli" != module):
        name, _, _ = name.rpartition(".")
        assert name, f"{module} is in no layer: add it to LAYERS"
    return LAYER_OF[name]


def own_imports(tree):
    """Names of our modules that a file imports when it runs, not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            assert node.level == 0, "relative import"
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            yield from own_imports(node)
            continue
        yield from (name for name in names if name.partition(".")[0] in ("qvg_cli", "qvg_kernels"))


SOURCES = sorted([*(ROOT / "qvg_cli").rglob("*.py"), *(ROOT / "kernels" / "qvg_kernels").rglob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_one_way(path):
    own = layer(module_name(path))
    upward = [name for name in own_imports(ast.parse(path.read_text())) if layer(name) > own]
    assert not upward


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_nothing_imports_from_scripts_or_tests(path):
    tree = ast.parse(path.read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [
        name for name in modules if name.partition(".")[0] in ("scripts", "tests", "kernels", "configs")
    ]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_planning_needs_no_torch(module):
    code = f"import {module}, sys; print([name for name in ('torch', 'diffusers') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_kernels_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
