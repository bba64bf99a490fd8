"""Functions of the Python API that need no torch; `import qvg_cli` offers them beside the engine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qvg_cli.config.load import make_request
from qvg_cli.config.resources import preset_names
from qvg_cli.engine.jobs import plan_caches
from qvg_cli.models.registry import check_keywords
from qvg_cli.report.forecasts import Plan, make_plan


def presets() -> tuple[str, ...]:
    """Names of the presets of the cache, such as "int2" and "bf16"."""
    return preset_names()


def plan(
    backend: str | None = None,
    *,
    pocket: bool = False,
    cache: str | Sequence[str] | None = None,
    card: str | None = None,
    gpus: int = 1,
    seconds: float | None = None,
    frames: int | None = None,
    segments: int | None = None,
    device: str | None = None,
    file: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """Tell what a video needs before it is made; nothing is loaded, and torch is not imported.

    Args:
        backend: Name of the model, such as "self-forcing"; `None` for the built-in one.
        pocket: Use the small weights that ship with the package.
        cache: Preset of the cache, or several to set side by side; `None` takes that of the settings.
        card: GPU that it has to fit, such as "RTX 4090" or "24GiB"; `None` takes that of this machine.
        gpus: How many such make the video together.
        seconds: Length, rounded up to the next that the model can make.
        frames: Length in pixel frames, instead of `seconds`.
        segments: Length in segments after the first clip, for a model that makes such.
        device: "auto", "cpu", "cuda" or "cuda:N".
        file: A YAML file of settings, such as a run's run.yaml.
        settings: Settings by their dotted names, such as `{"video.fps": 24}`.
        options: Options of the model's family, such as `window=12`.

    Returns:
        Chunks, forecast, verdict and suggestions; printed, it is the text of `qvg plan`.

    Raises:
        UsageError: The request does not fit the model; the message names the nearest that does.

    Example:
        >>> print(qvg.plan("self-forcing", seconds=45, card="RTX 4090"))
    """
    check_keywords(plan, options)
    request = make_request(
        backend, pocket=pocket, device=device, file=file, settings=settings, options=options
    )
    names = [cache] if cache is None or isinstance(cache, str) else cache
    videos = plan_caches(
        request, names, lambda line: None, seconds=seconds, frames=frames, segments=segments, is_made=False
    )
    return make_plan([video for (video,) in videos], card, num_gpus=gpus)
