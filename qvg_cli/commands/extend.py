"""`qvg extend`: a video that is there, and what comes after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from qvg_cli.commands import options
from qvg_cli.console import Console
from qvg_cli.errors import UsageError


def extend(
    video: Annotated[
        Path | None,
        typer.Argument(
            metavar="VIDEO",
            help="The folder of a run, or its video.mp4: its latents are used, and nothing is lost. "
            "Or any other video file: its end is encoded.",
            show_default=False,
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
    backend: options.Backend = None,
    pocket: options.Pocket = False,
    cache: Annotated[
        str | None,
        typer.Option(metavar="PRESET", help="How the attention history is kept.", show_default=False),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="New seconds, rounded up to the next possible length.", show_default=False),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            "--num-frames",
            help="New pixel frames, those that one sees, rounded up to the next possible number.",
            show_default=False,
        ),
    ] = None,
    segments: Annotated[
        int | None, typer.Option(metavar="N", help="longcat: new segments.", show_default=False)
    ] = None,
    size: options.Size = None,
    window: options.Window = None,
    sink: options.Sink = None,
    seed: options.Seed = None,
    prompts: options.Prompts = None,
    schedule: options.Schedule = None,
    resume: options.Resume = None,
    out: options.Out = Path("results"),
    dry_run: options.DryRun = False,
    card: options.Card = None,
    device: options.Device = None,
    config: options.ConfigFile = None,
    set_: options.Sets = None,
    json_: options.VideosAsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Go on from a video: the new one has its frames and then new ones.

    A run goes on with its own settings unless options change them; with the same prompt and seed it becomes
    what it would have been if it had been made longer. Its folder is left as it is: the new video has one of
    its own, with the files that qvg generate makes.
    """
    from qvg_cli.config.load import Request
    from qvg_cli.engine.jobs import check_weights, plan_jobs
    from qvg_cli.engine.sources import find_start

    del verbose, debug
    options.check_video_options(
        prompt=prompt,
        prompts=prompts,
        segments=segments,
        schedule=schedule,
        seconds=seconds,
        frames=frames,
        out=out,
        card=card,
        is_dry_run=dry_run,
    )
    for text in set_ or ():
        if text.partition("=")[0].strip() == "video.frames":
            raise UsageError(f"--set {text} says nothing of what is new", hint="give --frames or --seconds")

    console = Console(is_quiet=quiet)
    request = Request(
        backend=backend,
        pocket=pocket,
        file=config,
        sets=set_ or (),
        options=options.option_layers(
            prompt=prompt, cache=cache, size=size, seed=seed, device=device, window=window, sink=sink
        ),
    )
    if resume is not None:
        beside = {
            "VIDEO": video,
            "--dry-run": dry_run or None,
            "--seconds": seconds,
            "--frames": frames,
            "--prompts": prompts,
            "--config": config,
            "--schedule": schedule,
            "--segments": segments,
        }
        options.refuse_beside_resume(beside)

        from qvg_cli.commands.resume import resume_run

        resume_run(resume, request, console, seconds=None, frames=None, is_json=json_)
        return
    if video is None:
        raise UsageError("no VIDEO was given", hint="give the folder of a run, or a video file")
    start = find_start(video)
    # A run of another family than the one that is asked for is a clip like any other.
    request = replace(request, file=config or start.settings_for(backend))
    planned = plan_jobs(
        request,
        console.note,
        prompts=prompts,
        seconds=seconds,
        frames=frames,
        segments=segments,
        schedule=schedule,
        start=start,
    )

    if dry_run:
        from qvg_cli.commands.show_plan import show_plan

        show_plan(planned[:1], card, num_videos=len(planned), is_json=json_)
        return

    check_weights(planned[0])

    from qvg_cli.commands.batch import make_videos

    make_videos(planned, out, console, is_json=json_)
