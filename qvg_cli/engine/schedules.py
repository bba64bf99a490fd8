"""Where in a video its prompts change: from what a user wrote to frames at which chunks begin. No torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

from qvg_cli.config.schema import PromptChange, RunConfig
from qvg_cli.engine.lengths import given_pixel_frames
from qvg_cli.errors import UsageError
from qvg_cli.planning.chunks import VideoPlan
from qvg_cli.planning.prompts import Job, ScheduledPrompt

_TOLERANCE = 0.01
"""Seconds by which a moment may miss a chunk's begin: they are shown with two digits."""


def with_schedule(
    config: RunConfig, plan: VideoPlan, schedule: Sequence[ScheduledPrompt], note: Callable[[str], None]
) -> RunConfig:
    """`config` with the prompts of a schedule; its frames, seconds and chunks count what is new.

    A prompt that would begin inside a chunk begins with the next one. `UsageError` if one begins after the
    last chunk's begin, or not after the one before.
    """
    given = given_pixel_frames(config)
    begins = [plan.first_pixel_frame(chunk) for chunk in plan.chunks if chunk.makes]
    # The first new chunk may have given frames in front of its own.
    begins[0] = given
    begins = [begin - given for begin in begins]
    changes = list(config.prompt_changes)
    last = -1
    for entry in schedule:
        frame = _find(entry, begins, config.video.fps, note)
        if frame <= last:
            raise UsageError(
                f"{entry.place}: {_named(entry)} is not after the line before it, rounded to whole chunks"
            )
        last = frame
        if frame == 0 and plan.chunks[0].makes:
            config = config.model_copy(update={"prompt": entry.prompt})
        else:
            changes.append(PromptChange(frame=given + frame, prompt=entry.prompt))
    return config.model_copy(update={"prompt_changes": tuple(changes)})


def prompt_a_chunk(jobs: Sequence[Job], plan: VideoPlan, path: Path) -> list[ScheduledPrompt]:
    """The prompts of a file, one for each new chunk; `UsageError` if their number or a key does not fit."""
    count = sum(bool(chunk.makes) for chunk in plan.chunks)
    if len(jobs) != count:
        raise UsageError(
            f"{path} has {len(jobs)} prompts for {count} new clips, which take one prompt each",
            hint="a first clip that is generated counts too; for many videos, omit --segments",
        )
    if any(job.seed is not None or job.name is not None for job in jobs):
        raise UsageError(f"{path}: a segment cannot have its own seed or name", hint="remove them")
    return [
        ScheduledPrompt(job.prompt, "chunk", number, f"{path} prompt {number}")
        for number, job in enumerate(jobs, start=1)
    ]


def _find(entry: ScheduledPrompt, begins: Sequence[int], fps: int, note: Callable[[str], None]) -> int:
    if entry.unit == "chunk":
        if entry.begin > len(begins):
            raise UsageError(f"{entry.place}: {_named(entry)}: there are {len(begins)} new chunks")
        return begins[int(entry.begin) - 1]
    scale, slack = (fps, _TOLERANCE * fps) if entry.unit == "seconds" else (1, 0)
    wanted = entry.begin * scale
    following = next((begin for begin in begins if begin >= wanted - slack), None)
    if following is None:
        raise UsageError(
            f"{entry.place}: no chunk starts at {_named(entry)} or later; the last one starts at frame "
            f"{begins[-1]} ({begins[-1] / fps:.2f} s)",
            hint="prompts can only change at chunk boundaries",
        )
    if following - wanted > slack:
        note(
            f"{entry.place}: {_named(entry)} rounded up to the next chunk, which starts at frame "
            f"{following} ({following / fps:.2f} s)"
        )
    return following


def _named(entry: ScheduledPrompt) -> str:
    return f"{entry.begin:g} s" if entry.unit == "seconds" else f"{entry.unit} {entry.begin:g}"
