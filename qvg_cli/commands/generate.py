"""`qvg generate`: from the arguments to jobs that are checked whole before anything heavy is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from qvg_cli.commands.options import (
    FamilyOptions,
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
def generate(
    model: ModelOptions,
    length: LengthOptions,
    size: SizeOptions,
    family: FamilyOptions,
    prompting: PromptOptions,
    run: RunOptions,
    output: OutputOptions,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="Text prompt; - reads it from stdin [default: the demo prompt of the model].",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="i/n",
            help="Process shard i of n of --prompts. Run again to continue: finished videos are skipped.",
            show_default=False,
            rich_help_panel="Prompts",
        ),
    ] = None,
) -> None:
    """Generate a video and report KV-cache memory.

    The folder of the run gets video.mp4, latents.safetensors, memory.json, memory.png, report.html, run.log
    and run.yaml. The path of the video goes to stdout, everything else to stderr.
    """
    from qvg_cli.batch.shards import Shard
    from qvg_cli.engine.jobs import check_weights, plan_jobs

    prompting.check(prompt, length)
    length.check()
    run.check()
    console = Console(is_quiet=output.quiet)
    request = model.request(size, family, prompting, run, prompt=prompt)
    if run.resume is not None:
        refused = ("--dry-run", "--prompts", "--config", "--schedule", "--segments")
        refuse_beside_resume(run, prompting, model, length, own={}, only=refused)

        from qvg_cli.commands.resume import resume_run

        resume_run(
            run.resume, request, console, seconds=length.seconds, frames=length.frames, is_json=run.json_
        )
        return
    part = None if shard is None else Shard.parse(shard, prompting.prompts)
    bad: list[UsageError] = []
    planned = plan_jobs(
        request,
        console.note,
        prompts=prompting.prompts,
        seconds=length.seconds,
        frames=length.frames,
        segments=length.segments,
        schedule=prompting.schedule,
        bad=bad,
    )
    if part is not None:
        planned = part.take(planned)
        if not planned:
            raise UsageError(
                f"--shard {shard}: {prompting.prompts} has fewer prompts", hint="use fewer shards"
            )
    if run.dry_run:
        from qvg_cli.commands.show_plan import show_plan

        show_plan(planned[:1], run.gpu, num_videos=len(planned), is_json=run.json_)
        return

    check_weights(planned[0])

    from qvg_cli.batch.serial import make_videos

    make_videos(planned, run.out, console, is_json=run.json_, bad=bad, shard=part)
