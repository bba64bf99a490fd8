"""The rooms of the kernels: imports run one way, no two files need each other, benches need nothing above."""

import ast

import pytest

from .conftest import REPOSITORY

KERNELS = REPOSITORY / "kernels"
ROOMS = ("runtime", "norm", "quant", "rope", "codecs", "attention")
"""From the ground up; `codec.py` and `spec.py` belong to the codecs."""

BENCHES = sorted((KERNELS / "bench").glob("*.py"))


def name_of(path):
    parts = path.relative_to(KERNELS).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted((KERNELS / "qvg_kernels").rglob("*.py"))}


def imports_of(path):
    """Modules that a file imports when it runs, at its head or later; not those for type checkers alone."""
    nodes = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            nodes += ast.iter_child_nodes(node)


GRAPH = {name: {found for found in imports_of(path) if found in FILES} for name, path in FILES.items()}


def room_of(module):
    part = module.split(".")[1]
    return ROOMS.index("codecs" if part in ("codec", "spec") else part)


@pytest.mark.parametrize("module", [name for name in GRAPH if name != "qvg_kernels"])
def test_imports_run_one_way_through_the_rooms(module):
    assert [found for found in GRAPH[module] if room_of(found) > room_of(module)] == []


@pytest.mark.parametrize("module", GRAPH)
def test_no_file_needs_itself(module):
    reached, waiting = set(), list(GRAPH[module])
    while waiting:
        found = waiting.pop()
        if found not in reached:
            reached.add(found)
            waiting += GRAPH[found]
    assert module not in reached


def test_no_scheme_imports_another():
    folders = {path.parent.name for path in (KERNELS / "qvg_kernels" / "codecs").glob("*/spec.py")}
    for module, found in GRAPH.items():
        parts = module.split(".")
        if parts[1:2] == ["codecs"] and parts[2:3] and parts[2] in folders:
            others = {name.split(".")[2] for name in found if name.startswith("qvg_kernels.codecs.")}
            assert others & folders <= {parts[2]}, module


@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.name)
def test_a_bench_imports_the_kernels_alone(path):
    assert not [name for name in imports_of(path) if name.split(".")[0] in ("qvg_cli", "scripts", "tests")]
