"""A process that draws the plots of a run: it imports matplotlib, which takes long, while chunks are made.

A thread would take turns with the one that launches kernels.
"""

import os
import pickle
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import BinaryIO

import qvg_cli
from qvg_cli.planning.ledger import MemorySample
from qvg_cli.report.memory import MemoryReport


class Plotter:
    """Draws once. Out of reach of a terminal's Ctrl-C; it ends with the process that began it."""

    def __init__(self) -> None:
        package = str(Path(qvg_cli.__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = Popen(
            # Nothing that lies in the working folder is imported.
            [sys.executable, "-P", "-m", __name__],
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )

    def draw(self, plots: Mapping[Path, Callable[[BinaryIO], object]]) -> Mapping[Path, bytes]:
        """PNGs by the path of each plot, where no file is written; none if the process cannot draw them."""
        try:
            asked = pickle.dumps(plots)
        except (pickle.PicklingError, AttributeError, TypeError):
            # A plugin's.
            asked = b""
        pngs, _ = self._process.communicate(asked)
        return pickle.loads(pngs) if pngs and self._process.returncode == 0 else {}


def _main() -> None:
    # The first plot takes three times as long as the next.
    MemoryReport([MemorySample(0, 1, {}, {}, 1, 1, None)], fps=1, label="").save_plot(BytesIO())
    # From the process that began this one.
    if data := sys.stdin.buffer.read():
        pngs = {}
        for path, draw in pickle.loads(data).items():
            draw(stream := BytesIO())
            pngs[path] = stream.getvalue()
        sys.stdout.buffer.write(pickle.dumps(pngs))
        sys.stdout.buffer.flush()
        # Taking matplotlib apart would take as long as drawing.
        os._exit(0)


if __name__ == "__main__":
    _main()
