"""Plots are drawn by matplotlib's own defaults, whatever a shell or a file asks of it."""

import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from qvg_cli.plotting import color_levels, new_figure

DRAW = """
from pathlib import Path
from qvg_cli.plotting import color_levels, new_figure
with new_figure(2, 1, dpi=50) as figure:
    figure.add_subplot().set_title("a_b $x$")
    figure.savefig(Path("plot.png"), format="png")
print(color_levels("inferno").shape)
"""


def draw(folder, **environment):
    result = subprocess.run(
        [sys.executable, "-c", DRAW],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "(256, 3)\n", "")
    return (folder / "plot.png").read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "backend",
    ["module://matplotlib_inline.backend_inline", pytest.param("no such backend", marks=pytest.mark.slow)],
)
def test_the_backend_of_a_notebook_is_not_asked_for(tmp_path, plain, backend):
    assert draw(tmp_path, MPLBACKEND=backend) == plain


SETTINGS = b"text.usetex: True\nfigure.dpi: 300\nsavefig.facecolor: red\nfont.size: 40\nbackend: qt5agg\n"


@pytest.mark.parametrize(
    ("place", "content"),
    [
        pytest.param("working folder", SETTINGS, id="working folder"),
        *(pytest.param(place, SETTINGS, id=place, marks=pytest.mark.slow) for place in ("variable", "home")),
        pytest.param(
            "working folder",
            b"no colon\nfont.size: large and red\nno.such.key: 1\n",
            id="mistakes",
            marks=pytest.mark.slow,
        ),
        pytest.param("working folder", b"font.size: \xff\xfe\n", id="no text"),
    ],
)
def test_a_matplotlibrc_is_not_read(tmp_path, plain, content, place):
    name = {
        "working folder": "matplotlibrc",
        "variable": "mine.rc",
        "home": ".config/matplotlib/matplotlibrc",
    }
    path = tmp_path / name[place]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert draw(tmp_path, **({"MATPLOTLIBRC": str(path)} if place == "variable" else {})) == plain


def test_a_notebook_keeps_its_own_settings():
    with matplotlib.rc_context({"lines.linewidth": 9.0}):
        with new_figure(2, 1, dpi=50) as figure:
            (line,) = figure.add_subplot().plot([0, 1])
            assert line.get_linewidth() == 1.5
        assert matplotlib.rcParams["lines.linewidth"] == 9.0


def test_colours_go_from_dark_to_light():
    levels = color_levels("inferno").astype(int)
    assert levels[0].sum() < 20
    assert levels[-1].sum() > 600
    assert np.ptp(levels[:, 0]) > 200
