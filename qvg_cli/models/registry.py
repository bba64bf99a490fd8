"""The backends by name; nothing of a family is imported until it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from qvg_cli.config.schema import RunConfig
from qvg_cli.errors import UsageError
from qvg_cli.models.base import Extension, RunDetails

if TYPE_CHECKING:
    import torch

    from qvg_cli.models.base import Pipeline, Planner
    from qvg_cli.planning.chunks import VideoPlan
    from qvg_cli.planning.sizes import ModelSizes


class _Family(NamedTuple):
    """Where a family's code is.

    Attributes:
        config: Class in its `config.py` for runs of this family; none takes `RunConfig` as it is.
        has_details: Whether its `details.py` adds something to a run's folder.
        can_extend: Whether it goes on from a given video; its `extend.py` says how.
        option_settings: The settings of options that other families do not have, or have elsewhere.
    """

    package: str
    config: str | None = None
    has_details: bool = False
    can_extend: bool = False
    option_settings: Mapping[str, str] = MappingProxyType({})


_FAMILIES = {
    "self-forcing": _Family(
        "qvg_cli.models.self_forcing",
        config="SelfForcingConfig",
        can_extend=True,
        option_settings={"--window": "sampler.window", "--sink": "sampler.sink"},
    ),
    "hyworldplay": _Family(
        "qvg_cli.models.hyworldplay",
        config="HyWorldPlayConfig",
        has_details=True,
        option_settings={"--image": "walk.image", "--window": "sampler.window"},
    ),
    "longcat": _Family(
        "qvg_cli.models.longcat",
        config="LongCatConfig",
        can_extend=True,
        option_settings={"--image": "source.image"},
    ),
}


def backend_names() -> tuple[str, ...]:
    """Names that `--backend` takes."""
    return tuple(_FAMILIES)


def config_class(backend: str) -> type[RunConfig]:
    """What a run of `backend` is checked against."""
    family = _FAMILIES[backend]
    if family.config is None:
        return RunConfig
    model: type[RunConfig] = getattr(importlib.import_module(f"{family.package}.config"), family.config)
    return model


def plan_video(config: RunConfig) -> VideoPlan:
    """The plan of a run, without torch and without weights.

    Raises:
        UsageError: The request does not fit the model; the message names the nearest that does.
    """
    module = importlib.import_module(f"{_FAMILIES[config.backend].package}.plan")
    plan: VideoPlan = module.plan_video(config)
    return plan


def open_planner(config: RunConfig) -> Planner:
    """What plans a video of `config` that has no end yet, chunk by chunk.

    Raises:
        UsageError: The request does not fit the model; the message names the nearest that does.
    """
    module = importlib.import_module(f"{_FAMILIES[config.backend].package}.plan")
    planner: Planner = module.open_planner(config)
    return planner


def planner(config: RunConfig) -> Planner:
    """What has planned the video of `config`, for its denoiser."""
    module = importlib.import_module(f"{_FAMILIES[config.backend].package}.plan")
    planner: Planner = module.planner(config)
    return planner


def model_sizes(config: RunConfig, *, is_gpu: bool) -> ModelSizes:
    """How large the model of a run is, without torch and without weights.

    Raises:
        MissingModelError: It is in a folder of the user's, and that cannot be read.
    """
    module = importlib.import_module(f"{_FAMILIES[config.backend].package}.sizes")
    sizes: ModelSizes = module.model_sizes(config, is_gpu=is_gpu)
    return sizes


def run_details(config: RunConfig) -> RunDetails:
    """What the family of a run adds to its folder, without torch and without weights."""
    family = _FAMILIES[config.backend]
    if not family.has_details:
        return RunDetails()
    details: RunDetails = importlib.import_module(f"{family.package}.details").run_details(config)
    return details


def option_setting(backend: str, option: str) -> str | None:
    """The setting that `option` stands for with this family; none if it does not have the option."""
    return _FAMILIES[backend].option_settings.get(option)


def can_extend(backend: str) -> bool:
    """Whether a family goes on from a given video."""
    return _FAMILIES[backend].can_extend


def extension(config: RunConfig) -> Extension:
    """How the family of a run goes on from a given video, without torch and without weights.

    Raises:
        UsageError: It does not.
    """
    family = _FAMILIES[config.backend]
    if not family.can_extend:
        able = ", ".join(filter(can_extend, _FAMILIES))
        raise UsageError(f"{config.backend} cannot go on from a given video", hint=f"these can: {able}")
    rules: Extension = importlib.import_module(f"{family.package}.extend").extension(config)
    return rules


def load_pipeline(config: RunConfig, device: torch.device) -> Pipeline:
    """The model of a run, weights loaded.

    Raises:
        MissingModelError: The weights are not there or not whole.
    """
    module = importlib.import_module(f"{_FAMILIES[config.backend].package}.pipeline")
    pipeline: Pipeline = module.load_pipeline(config, device)
    return pipeline


def convert_checkpoint(backend: str, source: Path, config: Mapping[str, object], folder: Path) -> None:
    """Write the published checkpoint `source` to `folder` as safetensors with a config.json.

    Args:
        config: What the model is built from.

    Raises:
        MissingModelError: The file is not a checkpoint of this model; what is wrong is named.
    """
    module = importlib.import_module(f"{_FAMILIES[backend].package}.weights")
    module.convert_checkpoint(source, config, folder)
