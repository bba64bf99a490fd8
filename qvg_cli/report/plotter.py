"""A process that draws the plots of a run: it imports matplotlib, which takes long, while chunks are made.

A thread would take turns with the one that launches kernels.
"""

import json
import os
import pickle
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
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
        """PNGs by the path of each plot, where no file is written; empty if the process cannot draw them."""
        try:
            asked = pickle.dumps(list(plots.values()))
        except (pickle.PicklingError, AttributeError, TypeError):
            # A plugin's.
            asked = b""
        answer, _ = self._process.communicate(asked)
        # What comes back is data, and may be anything where a program's own start prints something.
        with suppress(ValueError):
            return dict(zip(plots, map(b64decode, json.loads(answer)), strict=True))
        return {}


def _main() -> None:
    # The first plot takes three times as long as the next.
    MemoryReport([MemorySample(0, 1, {}, {}, 1, 1, None)], fps=1, label="").save_plot(BytesIO())
    # From the process that began this one, and from nobody else.
    if asked := sys.stdin.buffer.read():
        pngs = []
        for draw in pickle.loads(asked):
            draw(stream := BytesIO())
            pngs.append(b64encode(stream.getvalue()).decode())
        sys.stdout.write(json.dumps(pngs))
        sys.stdout.flush()
        # Taking matplotlib apart would take as long as drawing.
        os._exit(0)


if __name__ == "__main__":
    _main()
