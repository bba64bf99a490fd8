"""The model families by name; nothing heavy of one is imported until it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

from qvg_cli import plugins
from qvg_cli.errors import UsageError, known_hint, unknown_name
from qvg_cli.models.base import Extension, Family
from qvg_cli.models.hyworldplay.family import HyWorldPlay
from qvg_cli.models.longcat.family import LongCat
from qvg_cli.models.self_forcing.family import SelfForcing
from qvg_cli.plugins import load_plugin

if TYPE_CHECKING:
    import torch

    from qvg_cli.config.load import LoadedConfig, Request
    from qvg_cli.config.schema import RunConfig
    from qvg_cli.models.base import Pipeline
    from qvg_cli.planning.chunks import VideoPlan


def _plugin(entry: EntryPoint) -> Family[Any]:
    return cast("type[Family[Any]]", load_plugin(entry))()


FAMILIES: dict[str, Callable[[], Family[Any]]] = {
    family.name: family for family in (SelfForcing, HyWorldPlay, LongCat)
}
for _entry in entry_points(group=plugins.FAMILIES):
    FAMILIES.setdefault(_entry.name, partial(_plugin, _entry))


def families() -> dict[str, Family[Any]]:
    """All by name, without plugins that cannot be loaded: they are refused when they are asked for."""
    found = {}
    for name in FAMILIES:
        with suppress(UsageError):
            found[name] = find_family(name)
    return found


def find_family(name: str) -> Family[Any]:
    """The family of a name; `UsageError` if there is none."""
    if name not in FAMILIES:
        raise unknown_name("family", name, tuple(FAMILIES))
    return FAMILIES[name]()


def family_of(config: RunConfig) -> Family[Any]:
    return find_family(config.family_name)


def check_keywords(function: Callable[..., object], options: Mapping[str, object]) -> None:
    """Refuse keywords of a function of the Python API that are no option of any family."""
    known = {option.keyword: None for family in families().values() for option in family.options}
    if unknown := [name for name in options if name not in known]:
        arguments = [name for name in signature(function).parameters if name not in ("self", "options")]
        hint = known_hint(unknown[0], [*arguments, *known])
        raise UsageError(f"{function.__name__}() has no argument {unknown[0]}", hint=hint)


def load_config(request: Request) -> LoadedConfig:
    """Resolve and check a request by the rules of the family that it names; `UsageError` if it breaks one."""
    from qvg_cli.config.load import Rules, resolve

    def rules_of(name: str) -> Rules:
        family = find_family(name)
        return family.config_class, family.options

    return resolve(request, rules_of)


def extension_of(config: RunConfig) -> Extension:
    """How the family of a run goes on from a given video; `UsageError` if it does not."""
    rules = family_of(config).extension(config)
    if rules is None:
        able = [name for name, family in families().items() if family.can_extend]
        raise UsageError(
            f"{config.backend} cannot continue a given video", hint=f"these can: {', '.join(able)}"
        )
    return rules


def plan_video(config: RunConfig) -> VideoPlan:
    return family_of(config).plan(config)


def model_calls(config: RunConfig, plan: VideoPlan) -> list[int]:
    """How often each chunk calls the model: to prefill, to denoise and to update the cache."""
    family = family_of(config)
    return [
        (family.num_steps(config, chunk) if chunk.makes else 0)
        + bool(chunk.prefill_commits)
        + bool(chunk.commits)
        for chunk in plan.chunks
    ]


def load_pipeline(config: RunConfig, device: torch.device) -> Pipeline:
    return family_of(config).load(config, device)
