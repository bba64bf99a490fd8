"""The house keeps its shape: imports run one way and in no circle, planning needs no torch."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

BASE = (
    "__init__", "console", "environment", "errors", "files", "interrupts", "lean_imports",
    "logs", "plotting", "plugins", "quick_start", "randomness",
    "redaction", "text_files",
)  # fmt: skip
"""Files of qvg_cli/ that any room may use; what they import is in this list too."""

ARROWS = {
    "config": "base kernels.spec",
    "planning": "base kernels.spec config",
    "device": "base kernels config",
    "cache": "base kernels config planning",
    "video": "base",
    "models": "base kernels config planning device cache video",
    "hub": "base config models",
    "engine": "base config planning device cache video models",
    "report": "base kernels config planning device video models hub engine",
    "runs": "base kernels config planning device cache video models engine report",
    "comparison": "base config device cache video models engine report runs",
    "play": "base config planning device video models engine report",
    "batch": "base config device video models engine report runs",
    "api": "config models engine report",
    "commands": "base config planning device video models hub engine report comparison play batch",
    "main": "base models engine commands",
}
"""What each room may import beside itself; docs/architecture.md has the same table."""

TORCH_FREE_ROOMS = ("config", "planning")
WITHOUT_TORCH = (
    "qvg_cli",
    "qvg_cli.api",
    "qvg_cli.main",
    "qvg_cli.models.registry",
    "qvg_cli.models.self_forcing.family",
    "qvg_cli.models.hyworldplay.family",
    "qvg_cli.models.longcat.family",
    "qvg_cli.hub.plan",
    "qvg_cli.hub.store",
    "qvg_cli.comparison.variants",
    "qvg_cli.engine.jobs",
    "qvg_cli.batch.run",
    "qvg_cli.engine.suggestions",
    "qvg_cli.engine.sources",
    "qvg_cli.commands.run",
    "qvg_cli.report.forecasts",
    "qvg_cli.report.html",
    "qvg_cli.models.self_forcing.plan",
    "qvg_kernels.spec",
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module):
    """The room of a module: a folder of qvg_cli, `base`, or the kernels with their torch-free spec."""
    package, _, rest = module.partition(".")
    if package == "qvg_kernels":
        return "kernels.spec" if rest == "spec" else "kernels"
    name = rest.partition(".")[0] or "__init__"
    return "base" if name in BASE else "main" if name == "__main__" else name


SOURCES = {
    module_name(path): path
    for path in sorted([*(ROOT / "qvg_cli").rglob("*.py"), *(ROOT / "kernels/qvg_kernels").rglob("*.py")])
}


@cache
def own_imports(path):
    """Our modules that a file imports when it runs, not those for type checkers alone."""

    def visit(tree):
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, "relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (name if name in SOURCES else node.module for name in names)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            else:
                yield from visit(node)

    names = visit(ast.parse(path.read_text(encoding="utf-8")))
    return {name for name in names if name.partition(".")[0] in ("qvg_cli", "qvg_kernels")}


def test_imports_run_one_way():
    wrong = []
    for module, path in SOURCES.items():
        own = room(module)
        allowed = set(ARROWS.get(own, "kernels" if own.startswith("kernels") else "base").split())
        if "kernels" in allowed:
            allowed.add("kernels.spec")
        wrong += [(module, name) for name in own_imports(path) if room(name) not in {own, *allowed}]
    assert wrong == []


def test_every_arrow_is_used_and_none_goes_back():
    rooms = list(ARROWS)
    for name, allowed in ARROWS.items():
        later = rooms[rooms.index(name) :]
        assert not set(allowed.split()) & set(later), "a room may import only those before it"
        used = {
            room(imported)
            for module in SOURCES
            if room(module) == name
            for imported in own_imports(SOURCES[module])
        }
        wanted = set(allowed.split())
        if "kernels" in wanted and "kernels.spec" in used:
            used.add("kernels")
        assert wanted <= used, f"{name} does not use {wanted - used}"


def test_no_files_import_each_other_in_a_circle():
    """Through imports inside of functions, too: they only hide a circle."""
    imports = {module: own_imports(path) & SOURCES.keys() for module, path in SOURCES.items()}
    # Names of the API, found when they are first used.
    imports["qvg_cli"] = set()
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for imported in sorted(imports[module]):
            visit(imported)
        path.pop()
        done.add(module)

    for module in imports:
        visit(module)


def test_the_document_has_the_same_arrows():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\| ([\w. ]+) \|$", text, re.MULTILINE)
    assert {name: " ".join(arrows.split()) for name, arrows in rows} == ARROWS


def test_nothing_imports_from_scripts_or_tests():
    imported = re.compile(r"^\s*(?:from|import) (?:scripts|tests|kernels|configs)\b", re.MULTILINE)
    assert [name for name, path in SOURCES.items() if imported.search(path.read_text(encoding="utf-8"))] == []


def test_planning_needs_no_torch():
    modules = [*WITHOUT_TORCH, *(name for name in SOURCES if room(name) in TORCH_FREE_ROOMS)]
    code = (
        "import sys\nfrom importlib import import_module\n"
        f"for name in {modules}:\n    import_module(name)\n"
        "    assert not {'torch', 'diffusers'} & sys.modules.keys(), name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kernels_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
