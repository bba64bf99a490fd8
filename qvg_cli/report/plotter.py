"""A process that draws memory.png: it imports matplotlib, which takes long, while a run makes its video.

A thread would take turns with the one that launches kernels.
"""

import os
import pickle
import sys
from io import BytesIO
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import qvg_cli
from qvg_cli.planning.ledger import MemorySample
from qvg_cli.report.memory import MemoryReport


class Plotter:
    """Draws one plot. Out of reach of a terminal's Ctrl-C; it ends with the process that began it."""

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

    def draw(self, report: MemoryReport) -> bytes | None:
        """The plot of `report` as a PNG; `None` if the process has failed."""
        png, _ = self._process.communicate(pickle.dumps(report))
        return png if self._process.returncode == 0 else None


def _main() -> None:
    # The first plot takes three times as long as the next.
    MemoryReport([MemorySample(0, 1, {}, {}, 1, 1, None)], fps=1, label="").save_plot(BytesIO())
    # From the process that began this one.
    if data := sys.stdin.buffer.read():
        pickle.loads(data).save_plot(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        # Taking matplotlib apart would take as long as drawing.
        os._exit(0)


if __name__ == "__main__":
    _main()
