"""`qvg generate`: from the arguments to jobs that are checked whole before anything heavy is loaded."""

import typer

from qvg_cli.commands import options
from qvg_cli.commands.options import option, refuse_beside_resume, with_options
from qvg_cli.console import Console
from qvg_cli.errors import UsageError


@with_options
def generate(
    model: options.Model,
    length: options.Length,
    size: options.Size,
    family: options.Family,
    prompting: options.Prompting,
    run: options.Run,
    output: options.Output,
    prompt: str | None = typer.Argument(
        None,
        metavar="PROMPT",
        help="Text prompt; - reads it from stdin [default: the demo prompt of the model].",
    ),
    shard: str | None = option(
        "--shard i/n",
        "Process shard i of n of --prompts. Run again to continue: finished videos are skipped.",
        panel="Prompts",
    ),
) -> None:
    """Generate a video and report KV-cache memory.

    The folder of the run gets video.mp4, latents.safetensors, memory.json, memory.png, report.html, run.log
    and run.yaml. The path of the video goes to stdout, everything else to stderr.
    """
    from qvg_cli.batch.shards import Shard
    from qvg_cli.commands.run import make_or_plan, resume_run
    from qvg_cli.engine.jobs import plan_jobs

    prompting.check(prompt, length)
    wanted = length.asked()
    run.check()
    console = Console(is_quiet=output.quiet)
    request = model.request(size, family, prompting, run, prompt=prompt)
    if run.resume is not None:
        refused = ("--dry-run", "--prompts", "--config", "--schedule", "--segments")
        refuse_beside_resume(run, prompting, model, length, own={}, only=refused)

        resume_run(
            run.resume, request, console, seconds=length.seconds, frames=length.frames, is_json=run.json_
        )
        return
    part = None if shard is None else Shard.parse(shard, prompting.prompts)
    bad: list[UsageError] = []
    planned = plan_jobs(
        request, console.note, prompts=prompting.prompts, **wanted, schedule=prompting.schedule, bad=bad
    )
    if part is not None:
        planned = part.take(planned)
        if not planned:
            raise UsageError(
                f"--shard {shard}: {prompting.prompts} has fewer prompts", hint="use fewer shards"
            )
    make_or_plan(planned, run, console, bad=bad, shard=part)
