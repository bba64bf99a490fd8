"""`qvg extend`: a video that is there, and what comes after it."""

from dataclasses import replace
from pathlib import Path

import typer

from qvg_cli.commands import options
from qvg_cli.commands.completion import complete_runs
from qvg_cli.commands.options import refuse_beside_resume, with_options
from qvg_cli.console import Console
from qvg_cli.errors import UsageError


@with_options
def extend(
    model: options.Model,
    length: options.Length,
    size: options.Size,
    family: options.ExtendFamily,
    prompting: options.Prompting,
    run: options.Run,
    output: options.Output,
    video: Path | None = typer.Argument(
        None,
        metavar="VIDEO",
        help="Folder of a run, or its video.mp4 (continued losslessly from its latents); or any other "
        "video file (its last frames are encoded).",
        autocompletion=complete_runs,
    ),
    prompt: str | None = typer.Argument(
        None,
        metavar="PROMPT",
        help="Prompt for the new part; - reads it from stdin [default: the prompt of the run].",
    ),
) -> None:
    """Continue a run losslessly, or any video clip.

    The output has the input frames, then new ones. A run is continued with its own settings unless options
    change them. With the same prompt and seed the result is the video that a longer run would have been. The
    input is left untouched: the output gets a folder of its own, with the same files as a run of qvg
    generate.
    """
    from qvg_cli.commands.run import make_or_plan, resume_run
    from qvg_cli.engine.jobs import plan_jobs
    from qvg_cli.engine.sources import find_start

    prompting.check(prompt, length)
    wanted = length.asked()
    run.check()
    for text in model.set_ or ():
        if text.partition("=")[0].strip() == "video.frames":
            raise UsageError(f"--set {text} does not set how much to add", hint="use --frames or --seconds")

    console = Console(is_quiet=output.quiet)
    request = model.request(size, family, prompting, run, prompt=prompt)
    if run.resume is not None:
        refused = ("--dry-run", *length.given(), "--prompts", "--config", "--schedule")
        refuse_beside_resume(run, length, prompting, model, own={"VIDEO": video}, only=refused)
        resume_run(run.resume, request, console, seconds=None, frames=None, is_json=run.json_)
        return
    if video is None:
        raise UsageError("no VIDEO given", hint="give the folder of a run, or a video file")
    start = find_start(video)
    # A run of another family than the one that is asked for is a clip like any other.
    request = replace(request, file=model.config or start.settings_for(model.backend))
    planned = plan_jobs(
        request, console.note, prompts=prompting.prompts, **wanted, schedule=prompting.schedule, start=start
    )
    make_or_plan(planned, run, console)
