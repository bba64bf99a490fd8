"""`qvg generate`: from the arguments to jobs that are checked whole before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvg_cli.commands import options
from qvg_cli.console import Console
from qvg_cli.errors import UsageError


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What the video shows; - reads it from stdin. Without it, the demo prompt.",
            show_default=False,
        ),
    ] = None,
    backend: options.Backend = None,
    pocket: options.Pocket = False,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET",
            help="How the attention history is kept, such as int2, the default, or bf16.",
            show_default=False,
        ),
    ] = None,
    seconds: options.Seconds = None,
    frames: options.PixelFrames = None,
    segments: options.Segments = None,
    size: options.Size = None,
    pose: options.Pose = None,
    pad_pose: options.PadPose = None,
    image: options.Image = None,
    context: options.Context = None,
    window: options.Window = None,
    sink: options.Sink = None,
    seed: options.Seed = None,
    prompts: options.Prompts = None,
    schedule: options.Schedule = None,
    shard: options.ShardOf = None,
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
    """Make a video and report the memory of its history.

    The run's folder gets video.mp4, latents.safetensors, memory.json, memory.png, report.html, run.log
    and run.yaml.
    The video's path goes to stdout, everything else to stderr.
    """
    from qvg_cli.commands.shards import Shard
    from qvg_cli.config.load import Request
    from qvg_cli.engine.jobs import Planned, check_weights, plan_jobs

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

    console = Console(is_quiet=quiet)
    request = Request(
        backend=backend,
        pocket=pocket,
        file=config,
        sets=set_ or (),
        options=options.option_layers(
            prompt=prompt,
            cache=cache,
            size=size,
            seed=seed,
            device=device,
            pose=pose,
            pad_pose=pad_pose,
            image=image,
            context=context,
            window=window,
            sink=sink,
        ),
    )
    if resume is not None:
        beside = {
            "--dry-run": dry_run or None,
            "--prompts": prompts,
            "--config": config,
            "--schedule": schedule,
            "--segments": segments,
        }
        options.refuse_beside_resume(beside)

        from qvg_cli.commands.resume import resume_run

        resume_run(resume, request, console, seconds=seconds, frames=frames, is_json=json_)
        return
    part = None if shard is None else Shard.parse(shard, prompts)
    bad: list[UsageError] = []
    planned: list[Planned] = plan_jobs(
        request,
        console.note,
        prompts=prompts,
        seconds=seconds,
        frames=frames,
        segments=segments,
        schedule=schedule,
        bad=bad,
    )
    if part is not None:
        planned = part.take(planned)
        if not planned:
            raise UsageError(
                f"--shard {shard}: {prompts} has fewer prompts", hint="split it into fewer parts"
            )

    if dry_run:
        from qvg_cli.commands.show_plan import show_plan

        show_plan(planned[:1], card, num_videos=len(planned), is_json=json_)
        return

    check_weights(planned[0])

    from qvg_cli.commands.batch import make_videos

    make_videos(planned, out, console, is_json=json_, bad=bad, shard=part)
