"""qvg: long videos from autoregressive video diffusion models, with a 2-bit KV cache.

The Python API:

    >>> import qvg_cli as qvg
    >>> engine = qvg.Engine.load(pocket=True, cache="int2")
    >>> video = engine.generate("a large red ball bounces on grass", seconds=2, seed=1)
    >>> video.save("ball.mp4")

Importing it loads nothing heavy: every name is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvg_cli.api import plan, presets
    from qvg_cli.comparison.run import Comparison, compare
    from qvg_cli.engine.engine import Engine
    from qvg_cli.engine.session import Session
    from qvg_cli.engine.video import Video
    from qvg_cli.report.forecasts import Plan

__version__ = "0.1.0"

__all__ = ["Comparison", "Engine", "Plan", "Session", "Video", "compare", "plan", "presets"]

_HOMES = {
    "Comparison": "qvg_cli.comparison.run",
    "Engine": "qvg_cli.engine.engine",
    "Plan": "qvg_cli.report.forecasts",
    "Session": "qvg_cli.engine.session",
    "Video": "qvg_cli.engine.video",
    "compare": "qvg_cli.comparison.run",
    "plan": "qvg_cli.api",
    "presets": "qvg_cli.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
