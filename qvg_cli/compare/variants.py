"""The arms of a comparison before anything is loaded: presets that are still to run, or runs that are there.

All arms have the same prompts, seeds, sizes and settings; only the cache may differ. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvg_cli.config.cache_presets import cache_label
from qvg_cli.config.load import Request, known_name, unknown_name
from qvg_cli.config.resources import preset_names
from qvg_cli.config.schema import RunConfig
from qvg_cli.console import Console
from qvg_cli.engine.jobs import Planned, plan_jobs
from qvg_cli.errors import UsageError
from qvg_cli.models.registry import load_config, plan_video
from qvg_cli.report.run_files import Result, read_result
from qvg_cli.runs.folder import run_name, slug, unique_names

_MAY_DIFFER = ("cache", "device")


@dataclass(frozen=True)
class Arm:
    """One way of keeping the cache, and the videos to make with it.

    Attributes:
        name: What tables and pictures call it; no other arm has it.
        videos: As many, in the same order, as every other arm has.
    """

    name: str
    videos: tuple[Planned, ...]


@dataclass(frozen=True)
class FinishedArm:
    """One run that is there already."""

    name: str
    video: Planned
    run: Result


def named_presets(arms: Sequence[str]) -> list[str]:
    """The arms, presets under their own names however they were written."""
    return [arm if Path(arm).is_dir() else known_name(arm, preset_names()) for arm in arms]


def are_presets(arms: Sequence[str]) -> bool:
    """Whether the arms are presets, and not folders of runs.

    Raises:
        UsageError: Too few, one is neither, or they are mixed.
    """
    if len(arms) < 2:
        raise UsageError("one arm is nothing to compare", hint="for example qvg compare bf16 int2")
    known = preset_names()
    for arm in arms:
        if arm not in known and not Path(arm).is_dir():
            if "/" in arm:
                raise UsageError(f"no folder {arm}", hint="give the folders of runs, or presets")
            raise unknown_name("cache preset", arm, known)
    folders = [arm for arm in arms if arm not in known]
    if folders and len(folders) < len(arms):
        preset = next(arm for arm in arms if arm in known)
        raise UsageError(
            f"{preset} is a preset and {folders[0]} a folder", hint="give presets only, or folders only"
        )
    return not folders


def plan_arms(
    presets: Sequence[str],
    request: Request,
    console: Console,
    *,
    prompts: Path | None,
    seconds: float | None,
    frames: int | None,
    num_seeds: int,
) -> list[Arm]:
    """Plan every video of every preset.

    Raises:
        UsageError: Something does not fit; nothing was made.
    """
    planned = []
    for index, preset in enumerate(presets):
        # First of all: what is set about the cache, such as cache.span_tokens, changes every preset.
        arm_request = replace(request, sets=(f"cache.preset={preset}", *request.sets))
        # What is said of the videos is said once.
        heard = console if index == 0 else Console(is_quiet=True)
        jobs = plan_jobs(arm_request, heard.note, prompts=prompts, seconds=seconds, frames=frames)
        planned.append(_with_seeds(jobs, num_seeds))
    names = unique_names([cache_label(videos[0].config.cache) for videos in planned], "{} ({})")
    return [Arm(name, videos) for name, videos in zip(names, planned, strict=True)]


def find_arms(folders: Sequence[str]) -> list[FinishedArm]:
    """Read finished runs, and make sure that they can be compared.

    Raises:
        UsageError: A folder holds no whole run, or two runs differ in more than their cache.
    """
    runs = [_read_run(Path(folder)) for folder in folders]
    configs = [load_config(Request(file=run.folder / "run.yaml")).config for run in runs]
    for run, config in zip(runs, configs, strict=True):
        if config.source is not None and config.source.clip is not None:
            raise UsageError(
                f"{run.folder} begins with the clip {config.source.clip}, which its latents do not hold",
                hint=f"compare presets on it: qvg compare bf16 int2 --config {run.folder / 'run.yaml'}",
            )
    for run, config in zip(runs[1:], configs[1:], strict=True):
        _check_same(configs[0], config, runs[0].folder, run.folder)
    names = unique_names([cache_label(config.cache) for config in configs], "{} ({})")
    return [
        FinishedArm(name, Planned(config, plan_video(config), run_name(config.prompt, config.seed)), run)
        for name, config, run in zip(names, configs, runs, strict=True)
    ]


def _with_seeds(jobs: Sequence[Planned], num_seeds: int) -> tuple[Planned, ...]:
    """Every job with its seed and the ones after it."""
    videos = []
    for job in jobs:
        is_named = job.name != run_name(job.config.prompt, job.config.seed)
        for seed in range(job.config.seed, job.config.seed + num_seeds):
            name = job.name if num_seeds == 1 else f"{job.name}-seed{seed}"
            if not is_named:
                name = run_name(job.config.prompt, seed)
            config = job.config.model_copy(update={"seed": seed})
            videos.append(replace(job, config=config, name=name))
    return tuple(videos)


def _read_run(folder: Path) -> Result:
    run = read_result(folder)
    if run.is_comparison:
        raise UsageError(f"{folder} is a comparison", hint="give the folders of its runs")
    if run.figures["status"] != "complete":
        raise UsageError(f"the run in {folder} is {run.figures['status']}", hint="make it again")
    if not (folder / "latents.safetensors").is_file():
        raise UsageError(f"{folder} has no latents.safetensors, from which its frames are decoded")
    return run


def _check_same(first: RunConfig, other: RunConfig, first_folder: Path, folder: Path) -> None:
    pairs = zip(_flat(first.model_dump()), _flat(other.model_dump()), strict=False)
    for (key, value), (other_key, other_value) in pairs:
        if (key, value) != (other_key, other_value):
            raise UsageError(
                f"the runs differ in {key}: {value!r} in {first_folder}, {other_value!r} in {folder}",
                hint="only what differs in nothing but the cache can be compared",
            )


def _flat(values: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Dotted settings and their values, but for those that runs of a comparison may differ in."""
    settings = []
    for key, value in values.items():
        if not path and key in _MAY_DIFFER:
            continue
        if isinstance(value, Mapping):
            settings += _flat(value, f"{path}{key}.")
        else:
            settings.append((f"{path}{key}", value))
    return settings


def comparison_name(arms: Sequence[str], videos: Sequence[Planned]) -> str:
    """Name of the folder that a comparison is written to."""
    what = videos[0].name if len(videos) == 1 else f"{len(videos)}-videos"
    return f"{slug(' '.join(arms))}-{what}"
