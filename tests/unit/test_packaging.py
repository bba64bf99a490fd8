"""The wheel: whole, without a package named `kernels`, and at work in a folder far from its source."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

from qvg_cli.config.resources import configs_dir, preset_names, weights_folder

ROOT = Path(__file__).parents[2]
SHIPPED = [path for name in ("qvg_cli", "configs") for path in (ROOT / name).rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as `pip install .` builds it, but with the tools that are already here."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", *options, str(ROOT)], check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds the wheel's content and is searched before the source tree."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *options, str(wheel)], check=True)
    return folder


def run(installed, cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_the_wheel_holds_all_that_a_run_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "qvg_cli",
        "qvg_kernels",
    }
    for path in SHIPPED:
        relative = path.relative_to(ROOT)
        if "__pycache__" in relative.parts:
            continue
        name = relative.as_posix()
        assert (f"qvg_cli/{name}" if name.startswith("configs/") else name) in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_package_finds_its_own_files(installed, tmp_path):
    code = "import qvg_kernels, qvg_cli.config.resources as r; print(r.configs_dir(), qvg_kernels.__file__)"
    found = run(installed, tmp_path, sys.executable, "-c", code).stdout.split()
    assert found == [str(installed / "qvg_cli" / "configs"), str(installed / "qvg_kernels" / "__init__.py")]


@pytest.mark.slow
def test_the_installed_program_makes_a_video(installed, tmp_path, tiny_weights):
    program = [str(installed / "bin" / "qvg"), "generate", "a red ball", "--frames", "9", "--size", "64x32"]
    settings = [f"model.weights={tiny_weights}", "model.text_tokens=8"]
    result = run(installed, tmp_path, *program, *(part for text in settings for part in ("--set", text)))
    assert result.stdout == "results/self-forcing/a-red-ball-seed0/video.mp4\n"
    assert (tmp_path / result.stdout.strip()).stat().st_size > 0


def test_every_import_is_a_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][name] for name in ("kernels", "play", "ray")]
    required = {distribution(text) for text in chain(project["dependencies"], *extras)}
    # There where a notebook runs, and imported nowhere else.
    required.add("ipython")
    own = {"qvg_cli", "qvg_kernels"}
    sources = [*(ROOT / "qvg_cli").rglob("*.py"), *(ROOT / "kernels" / "qvg_kernels").rglob("*.py")]
    imported = {name for path in sources for name in top_level_imports(path)} - own - sys.stdlib_module_names
    shipped_by = packages_distributions()
    missing = {
        name
        for name in imported
        if not {distribution(dist) for dist in shipped_by.get(name, [name])} & required
    }
    assert not missing


def top_level_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)


def distribution(requirement):
    """Name of a requirement in the form that is compared."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_the_constraints_pin_torch_and_every_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {distribution(line) for line in lines if "==" in line}
    assert {distribution(text) for text in requirements} <= pinned
    assert "torch==2.13.0" in lines


def test_a_checkout_uses_its_own_files():
    assert configs_dir() == ROOT / "configs"
    assert {"bf16", "int2", "int2-qvg", "none"} <= set(preset_names())
    assert weights_folder("pocket") == ROOT / "qvg_cli" / "data" / "pocket"
