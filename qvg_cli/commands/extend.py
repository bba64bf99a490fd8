"""`qvg extend`: a video that is there, and what comes after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from qvg_cli.commands.completion import complete_runs
from qvg_cli.commands.options import (
    ExtendFamilyOptions,
    LengthOptions,
    ModelOptions,
    OutputOptions,
    PromptOptions,
    RunOptions,
    SizeOptions,
    refuse_beside_resume,
    with_options,
)
from qvg_cli.console import Console
from qvg_cli.errors import UsageError


@with_options
def extend(
    model: ModelOptions,
    length: LengthOptions,
    size: SizeOptions,
    family: ExtendFamilyOptions,
    prompting: PromptOptions,
    run: RunOptions,
    output: OutputOptions,
    video: Annotated[
        Path | None,
        typer.Argument(
            metavar="VIDEO",
            help="The folder of a run, or its video.mp4: its latents are used, and nothing is lost. "
            "Or any other video file: its end is encoded.",
            show_default=False,
            autocompletion=complete_runs,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What comes next; - reads it from stdin. Without it, the prompt of the run.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Go on from a video: the new one has its frames and then new ones.

    A run goes on with its own settings unless options change them; with the same prompt and seed it becomes
    what it would have been if it had been made longer. Its folder is left as it is: the new video has one of
    its own, with the files that qvg generate makes.
    """
    from qvg_cli.engine.jobs import check_weights, plan_jobs
    from qvg_cli.engine.sources import find_start

    prompting.check(prompt, length)
    length.check()
    run.check()
    for text in model.set_ or ():
        if text.partition("=")[0].strip() == "video.frames":
            raise UsageError(f"--set {text} says nothing of what is new", hint="give --frames or --seconds")

    console = Console(is_quiet=output.quiet)
    request = model.request(size, family, prompting, run, prompt=prompt)
    if run.resume is not None:
        refused = ("--dry-run", *length.given(), "--prompts", "--config", "--schedule")
        refuse_beside_resume(run, length, prompting, model, own={"VIDEO": video}, only=refused)

        from qvg_cli.commands.resume import resume_run

        resume_run(run.resume, request, console, seconds=None, frames=None, is_json=run.json_)
        return
    if video is None:
        raise UsageError("no VIDEO was given", hint="give the folder of a run, or a video file")
    start = find_start(video)
    # A run of another family than the one that is asked for is a clip like any other.
    request = replace(request, file=model.config or start.settings_for(model.backend))
    planned = plan_jobs(
        request,
        console.note,
        prompts=prompting.prompts,
        seconds=length.seconds,
        frames=length.frames,
        segments=length.segments,
        schedule=prompting.schedule,
        start=start,
    )
    if run.dry_run:
        from qvg_cli.commands.show_plan import show_plan

        show_plan(planned[:1], run.card, num_videos=len(planned), is_json=run.json_)
        return

    check_weights(planned[0])

    from qvg_cli.batch.serial import make_videos

    make_videos(planned, run.out, console, is_json=run.json_)
