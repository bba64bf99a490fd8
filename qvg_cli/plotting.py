"""matplotlib as it comes: what a user's shell and matplotlibrc ask of it is meant for other programs.

A notebook's shell exports MPLBACKEND, and a matplotlibrc may ask for a screen or for LaTeX. Inside
`new_figure` the library's defaults hold, and afterwards those of the process again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BACKEND = "MPLBACKEND"


@contextmanager
def new_figure(width: float, height: float, *, dpi: int) -> Iterator[Figure]:
    """An empty figure, `width` x `height` inches, to be drawn and saved inside the context."""
    matplotlib = load()
    # Not pyplot: it would look for a screen.
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def color_levels(name: str) -> NDArray[np.uint8]:
    """The 256 colours `[256, 3]` of a colour map, from its darkest."""
    colors: NDArray[np.float64] = load().colormaps[name](np.arange(256))[:, :3]
    return (colors * 255).round().astype(np.uint8)


def load() -> ModuleType:
    """matplotlib, whatever a matplotlibrc holds; the working folder of all threads may change for a while."""
    try:
        return _import()
    except (OSError, ValueError):
        # A matplotlibrc that is not even text; one in the working directory comes before all others.
        spec = find_spec("matplotlib")
        if spec is None or not spec.origin:
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]
        with chdir(Path(spec.origin).parent / "mpl-data"):
            return _import()


def _import() -> ModuleType:
    # It warns of settings that it cannot read, and of a cache folder that it cannot write.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    backend = os.environ.pop(_BACKEND, None)
    try:
        return import_module("matplotlib")
    finally:
        if backend is not None:
            os.environ[_BACKEND] = backend
