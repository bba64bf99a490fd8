"""The variants of a comparison before anything is loaded: presets to run, or runs that are there.

All variants have the same prompts, seeds, sizes and settings; only the cache may differ. No torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvg_cli.config.cache_presets import cache_label
from qvg_cli.config.load import Request, known_name
from qvg_cli.config.resources import preset_names
from qvg_cli.config.schema import RunConfig
from qvg_cli.engine.jobs import Planned, plan_caches
from qvg_cli.errors import UsageError, unknown_name
from qvg_cli.files import run_name, slug, unique_names
from qvg_cli.models.registry import load_config, plan_video
from qvg_cli.report.run_files import Result, read_result
from qvg_cli.runs.identity import leaves

_MAY_DIFFER = {"cache", "device"}


@dataclass(frozen=True)
class Variant:
    """One way of keeping the cache, under a name of its own, and as many videos as every other has."""

    name: str
    videos: tuple[Planned, ...]


@dataclass(frozen=True)
class FinishedVariant:
    name: str
    video: Planned
    run: Result


def named_presets(variants: Sequence[str]) -> list[str]:
    """The variants, presets under their own names however they were written."""
    return [each if Path(each).is_dir() else known_name(each, preset_names()) for each in variants]


def are_presets(variants: Sequence[str]) -> bool:
    """Whether all are presets, or all folders of runs; `UsageError` if neither, mixed or too few."""
    if len(variants) < 2:
        raise UsageError("give at least two presets or runs to compare", hint="e.g. qvg compare bf16 int2")
    known = preset_names()
    for variant in variants:
        if variant not in known and not Path(variant).is_dir():
            if "/" in variant:
                raise UsageError(f"no folder {variant}", hint="use folders of runs, or presets")
            if " " in variant:
                raise UsageError(f"unknown cache preset {variant!r}", hint="a prompt is given with --prompt")
            raise unknown_name("cache preset", variant, known)
    folders = [variant for variant in variants if variant not in known]
    if folders and len(folders) < len(variants):
        preset = next(variant for variant in variants if variant in known)
        raise UsageError(
            f"{preset} is a preset and {folders[0]} a folder", hint="use presets only, or folders only"
        )
    return not folders


def plan_variants(
    presets: Sequence[str],
    request: Request,
    note: Callable[[str], None],
    *,
    num_seeds: int = 1,
    **options: Any,
) -> list[Variant]:
    """Plan every video of every preset, with its seed and those after it; the options are `plan_jobs`'s."""
    planned = [_with_seeds(jobs, num_seeds) for jobs in plan_caches(request, presets, note, **options)]
    names = unique_names([cache_label(videos[0].config.cache) for videos in planned], "{} ({})")
    return [Variant(name, videos) for name, videos in zip(names, planned, strict=True)]


def find_variants(folders: Sequence[str]) -> list[FinishedVariant]:
    """Read finished runs; `UsageError` if one is not whole, or two differ in more than their cache."""
    runs = [_read_run(Path(folder)) for folder in folders]
    configs = [load_config(Request(file=run.folder / "run.yaml")).config for run in runs]
    for run, config in zip(runs, configs, strict=True):
        if config.source is not None and config.source.clip is not None:
            raise UsageError(
                f"{run.folder} starts from the clip {config.source.clip}, which is not in its latents",
                hint=f"compare presets instead: qvg compare bf16 int2 --config {run.folder / 'run.yaml'}",
            )
    for run, config in zip(runs[1:], configs[1:], strict=True):
        _check_same(configs[0], config, runs[0].folder, run.folder)
    names = unique_names([cache_label(config.cache) for config in configs], "{} ({})")
    return [
        FinishedVariant(name, Planned(config, plan_video(config), run_name(config.prompt, config.seed)), run)
        for name, config, run in zip(names, configs, runs, strict=True)
    ]


def _with_seeds(jobs: Sequence[Planned], num_seeds: int) -> tuple[Planned, ...]:
    videos = []
    for job in jobs:
        prompt, first = job.config.prompt, job.config.seed
        for seed in range(first, first + num_seeds):
            name = job.name if num_seeds == 1 else f"{job.name}-seed{seed}"
            if job.name == run_name(prompt, first):
                name = run_name(prompt, seed)
            videos.append(replace(job, config=job.config.model_copy(update={"seed": seed}), name=name))
    return tuple(videos)


def _read_run(folder: Path) -> Result:
    run = read_result(folder)
    if run.is_comparison:
        raise UsageError(f"{folder} is a comparison", hint="use the folders of its runs")
    if run.figures["status"] != "complete":
        raise UsageError(f"the run in {folder} is {run.figures['status']}", hint="generate it again")
    if not (folder / "latents.safetensors").is_file():
        raise UsageError(f"{folder} has no latents.safetensors, from which its frames are decoded")
    return run


def _check_same(first: RunConfig, other: RunConfig, first_folder: Path, folder: Path) -> None:
    one, two = (dict(leaves(config.model_dump(exclude=_MAY_DIFFER))) for config in (first, other))
    for key in {**one, **two}:
        if one.get(key) != two.get(key):
            raise UsageError(
                f"the runs differ in {key}: {one.get(key)!r} in {first_folder}, {two.get(key)!r} in {folder}",
                hint="runs can be compared if they differ in the cache only",
            )


def comparison_name(variants: Sequence[str], videos: Sequence[Planned]) -> str:
    what = videos[0].name if len(videos) == 1 else f"{len(videos)}-videos"
    return f"{slug(' '.join(variants))}-{what}"
