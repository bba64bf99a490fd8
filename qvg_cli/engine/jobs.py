"""All videos of one command, each with its configuration and plan, before anything is loaded. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvg_cli.config import resources
from qvg_cli.config.load import Layer, Request
from qvg_cli.config.schema import RunConfig
from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.engine.lengths import fit_length, given_pixel_frames, rounding_note
from qvg_cli.engine.schedules import prompt_a_chunk, with_schedule
from qvg_cli.engine.sources import Start, has_size, take_picture, take_up
from qvg_cli.errors import UsageError
from qvg_cli.files import run_name, slug
from qvg_cli.models.registry import family_of, load_config, plan_video
from qvg_cli.planning.cache_forecast import CacheShape, check_matrices
from qvg_cli.planning.chunks import VideoPlan, prompt_begins
from qvg_cli.planning.forecast import is_for_gpu
from qvg_cli.planning.prompts import (
    Job,
    ScheduledPrompt,
    check_prompt,
    pocket_examples,
    read_jobs,
    read_schedule,
    unknown_words,
)

_MAX_WORDS = 8


@dataclass(frozen=True)
class Planned:
    """One video, ready to be made into a run folder of this name."""

    config: RunConfig
    plan: VideoPlan
    name: str


def plan_jobs(
    request: Request,
    note: Callable[[str], None],
    *,
    prompts: Path | None = None,
    seconds: float | None = None,
    frames: int | None = None,
    segments: int | None = None,
    start: Start | None = None,
    schedule: Path | Sequence[ScheduledPrompt] | None = None,
    bad: list[UsageError] | None = None,
    is_made: bool = True,
) -> list[Planned]:
    """Resolve and plan every video of a command, and tell `note` what was chosen for the user.

    Args:
        prompts: A file with a prompt a video; with `segments`, a prompt a segment of one video.
        start: The video that all of them go on from.
        schedule: The prompts of every video and where they begin, or the file that has them.
        bad: Takes what is wrong with lines of `prompts`; `None` refuses them all for one such line.
        is_made: Whether prompts matter: the videos are made and not only planned.
    """
    loaded = load_config(request)
    config = loaded.config
    for line in loaded.notes:
        note(line)
    if loaded.has_default_backend:
        how = "--backend selects a real one; see qvg download --list"
        note(f"no --backend given: using the built-in demo model ({how})")
    if is_made and loaded.has_default_prompt and prompts is None:
        if start is not None:
            config = config.model_copy(update={"prompt": _prompt_after(start, schedule)})
        if schedule is None:
            note(f"no PROMPT given: {config.prompt!r}")
    if start is not None:
        config = take_up(start, config, note, is_size_given=has_size(request))
    elif config.source is not None and config.source.image is not None:
        config = take_picture(config, note, is_size_given=has_size(request))
    config = fit_length(config, seconds=seconds, frames=frames, segments=segments)
    if config.video.decoder == "taehv" and not config.has_published_weights:
        resources.taehv_file(resources.weights_folder(config.model.weights))
    plan = plan_video(config)
    if rounding := rounding_note(config, plan, seconds=seconds, frames=frames):
        note(rounding)
    _note_length(note, config, plan)
    _note_tall_size(note, config, request)
    for line in plan.notes:
        note(line)

    is_given = any("prompt" in layer.values for layer in request.options)
    config, jobs = _read_prompts(
        config, plan, prompts, schedule, note, is_prompt_given=is_given, is_one=bool(segments), bad=bad
    )
    # A change of the prompt may have chunks of its own.
    plan = plan_video(config)
    _note_recache(note, config, plan)
    if config.model.weights == "pocket":
        for prompt in [job.prompt for job in jobs] + [change.prompt for change in config.prompt_changes]:
            _note_unknown_words(note, prompt, config.family_name)
    planned = []
    for job in jobs:
        seed = config.seed if job.seed is None else job.seed
        name = (slug(job.name) if job.name else "") or run_name(job.prompt, seed)
        if start is not None and not job.name:
            continued = start.next_name(config.cache.preset)
            name = continued if len(jobs) == 1 else f"{continued}-{name}"
        planned.append(Planned(config.model_copy(update={"prompt": job.prompt, "seed": seed}), plan, name))
    return planned


def plan_caches(
    request: Request, presets: Sequence[str | None], note: Callable[[str], None], **options: Any
) -> list[list[Planned]]:
    """Plan the same videos with each of several caches; what is said of them is said once.

    Args:
        presets: Their names; `None` is the cache of the settings.
        options: As `plan_jobs` takes them.
    """
    planned = []
    for index, preset in enumerate(presets):
        # What is set about the cache beside its preset, such as cache.span_tokens, changes every preset.
        named = [] if preset is None else [Layer("--cache", {"cache": {"preset": preset}})]
        heard = note if index == 0 else lambda line: None
        one = replace(request, options=[*request.options, *named])
        planned.append(plan_jobs(one, heard, **options))
    return planned


def check_weights(video: Planned) -> None:
    """Notice files that are missing, or do not fit the model, before torch is loaded."""
    config = video.config
    checkpoint = getattr(config.model, "checkpoint", None)
    loras = [lora.file for lora in getattr(config.model, "lora", ())]
    resources.check_weights(config.model.weights, checkpoint, loras, config.video.decoder)
    if config.cache.matrices is not None:
        sizes = family_of(config).sizes(config, is_gpu=False)
        check_matrices(config.cache, CacheShape(sizes.num_layers, sizes.heads, sizes.head_dim))


def _prompt_after(start: Start, schedule: Path | Sequence[ScheduledPrompt] | None) -> str:
    """The prompt with which a video goes on if none was given."""
    if start.last_prompt is not None:
        return start.last_prompt
    if schedule is not None and (first := _scheduled(schedule)[0]).is_at_begin:
        return first.prompt
    raise UsageError(f"no PROMPT given for the continuation of {start.video}", hint="describe what it shows")


def _scheduled(schedule: Path | Sequence[ScheduledPrompt] | None) -> Sequence[ScheduledPrompt]:
    return read_schedule(schedule) if isinstance(schedule, Path) else schedule or ()


def _read_prompts(
    config: RunConfig,
    plan: VideoPlan,
    prompts: Path | None,
    schedule: Path | Sequence[ScheduledPrompt] | None,
    note: Callable[[str], None],
    *,
    is_prompt_given: bool,
    is_one: bool,
    bad: list[UsageError] | None,
) -> tuple[RunConfig, list[Job]]:
    """The videos to make, and the settings with the prompts that come later in each.

    Args:
        is_one: Whether `prompts` are those of one video, clip by clip.
    """
    if prompts is not None or is_prompt_given:
        # Whoever gives a prompt does not mean the changes that a file had.
        config = config.model_copy(update={"prompt_changes": ()})
    scheduled = _scheduled(schedule)
    if prompts is not None and is_one:
        scheduled = prompt_a_chunk(read_jobs(prompts), plan, prompts)
    for number, change in enumerate(config.prompt_changes, start=1):
        check_prompt(change.prompt, f"prompt_changes, number {number}: prompt")
    first = config.prompt
    config = with_schedule(config, plan, scheduled, note)
    if config.prompt_changes:
        # Refuse what run.yaml could not hold before anything is loaded.
        format_yaml(config.model_dump(mode="json"))
    # Again: not every family takes prompts that change.
    prompt_begins(plan_video(config), [change.frame for change in config.prompt_changes])
    if prompts is None or is_one:
        if config.prompt != first and is_prompt_given:
            raise UsageError(f"PROMPT and a prompt at the start of {schedule} were both given")
        return config, [Job(check_prompt(config.prompt))]
    if config.prompt != first:
        raise UsageError(f"--prompts and a prompt at the start of {schedule} were both given")
    return config, read_jobs(prompts, bad)


def _note_tall_size(note: Callable[[str], None], config: RunConfig, request: Request) -> None:
    """Say how a --size is read that may be written in the order of earlier versions, the height first."""
    width, height = config.video.width, config.video.height
    is_given = any(layer.source == "--size" for layer in request.options)
    if is_given and height > width and config.source is None:
        landscape = f"--size {height}x{width}"
        note(f"--size is width x height, so this video is portrait; for landscape use {landscape}")


def _note_length(note: Callable[[str], None], config: RunConfig, plan: VideoPlan) -> None:
    given = given_pixel_frames(config)
    lasts = (plan.num_pixel_frames - given) / config.video.fps
    frames = f"{plan.num_pixel_frames} frames ({plan.num_frames} latent)"
    if given and config.source is not None:
        new = plan.num_frames - config.source.frames
        frames = f"{plan.num_pixel_frames - given} new frames ({new} latent)"
    count = sum(bool(chunk.makes) for chunk in plan.chunks)
    note(
        f"video: {plan.width}x{plan.height}, {frames} at {config.video.fps} fps, "
        f"{lasts:.2f} s in {count} chunk{'s' if count != 1 else ''}"
    )


def _note_recache(note: Callable[[str], None], config: RunConfig, plan: VideoPlan) -> None:
    """Say what it costs that finished frames pass again under another prompt."""
    passes, end = [], 0
    for chunk in plan.chunks:
        # Such a chunk adds no frame.
        if max(chunk.frames) < end:
            passes.append(len(chunk.prefill))
        end = max(end, max(chunk.frames) + 1)
    if not passes:
        return
    frames = max(passes)
    tokens = frames * plan.tokens_per_frame
    sizes = family_of(config).sizes(config, is_gpu=is_for_gpu(config, has_card=False))
    times = "once" if len(passes) == 1 else f"{len(passes)} times"
    note(
        f"recache: {times}, the newest {frames} latent frames pass again under another prompt, in one model "
        f"call of {tokens} tokens, which takes {tokens * sizes.token_bytes / 2**20:.0f} MiB while it runs"
    )


def _note_unknown_words(note: Callable[[str], None], prompt: str, family: str) -> None:
    if words := unknown_words(prompt, family):
        named = ", ".join(map(repr, words[:_MAX_WORDS]))
        if len(words) > _MAX_WORDS:
            named += f" and {len(words) - _MAX_WORDS} more words"
        known = pocket_examples(family)
        note(f"the demo model does not know {named} and may show something else; it knows {known}")
