"""The backends by name; nothing of a family is imported until it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qvg_cli.backends.base import Pipeline
    from qvg_cli.config import RunConfig
    from qvg_cli.plan import VideoPlan

_PACKAGES = {"self-forcing": "qvg_cli.backends.self_forcing"}


def backend_names() -> tuple[str, ...]:
    """Names that `--backend` takes."""
    return tuple(_PACKAGES)


def plan_video(config: RunConfig) -> VideoPlan:
    """The plan of a run, without torch and without weights.

    Raises:
        UsageError: The request does not fit the model; the message names the nearest that does.
    """
    module = importlib.import_module(f"{_PACKAGES[config.backend]}.plan")
    plan: VideoPlan = module.plan_video(config)
    return plan


def load_pipeline(config: RunConfig, device: torch.device) -> Pipeline:
    """The model of a run, weights loaded.

    Raises:
        MissingModelError: The weights are not there or not whole.
    """
    module = importlib.import_module(f"{_PACKAGES[config.backend]}.pipeline")
    pipeline: Pipeline = module.load_pipeline(config, device)
    return pipeline
