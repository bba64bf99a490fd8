"""`qvg batch`: a file of prompts over workers on Ray, on one machine or on many."""

import json
import sys
from pathlib import Path

import typer

from qvg_cli.commands import options
from qvg_cli.commands.options import OUTPUT, WORKERS, option, with_options
from qvg_cli.console import Console, show_data
from qvg_cli.errors import UsageError


@with_options
def batch(
    model: options.Model,
    length: options.Length,
    size: options.Size,
    family: options.Family,
    seed: options.Seed,
    cache: options.Cache,
    output: options.Output,
    prompts: Path | None = typer.Argument(
        None,
        metavar="PROMPTS",
        help="A .jsonl file with one object per line (keys prompt, seed, name), or a .txt file with one "
        "prompt per line.",
    ),
    out: str = option(
        "--out -o FOLDER",
        "Write results to FOLDER/<model>/: a folder that all workers can access, or an address such as "
        "s3://bucket/videos.",
        default="results",
    ),
    ray: str = option(
        "--ray ADDRESS|auto|local",
        "Ray cluster: local starts one on this machine, auto connects to the one running here.",
        default="local",
        panel=WORKERS,
    ),
    workers: int | None = option(
        "--workers N", "Number of workers [default: as many as fit].", min=1, panel=WORKERS
    ),
    gpus_per_worker: int = option(
        "--gpus-per-worker K",
        "GPUs of one machine that share a video; on CPUs, processes.",
        default=1,
        min=1,
        panel=WORKERS,
    ),
    status: str | None = option(
        "--status FOLDER", "Show the progress of the batch in FOLDER, from any machine, and exit."
    ),
    json_: bool = option(
        "--json", "Print one JSON object per video to stdout, or with --status a single one.", panel=OUTPUT
    ),
) -> None:
    """Generate the videos of a prompt file, on many workers.

    Run the same command again to continue: finished videos are skipped, unfinished ones resumed, failed ones
    tried again, and new lines of the file added. FOLDER/manifest.jsonl has the status of each video.
    """
    from qvg_cli.batch.run import make_batch, status_text
    from qvg_cli.engine.jobs import plan_jobs

    if status is not None:
        if prompts is not None:
            raise UsageError("PROMPTS and --status were both given", hint="qvg batch --status FOLDER")
        show_data(status_text(status, is_json=json_))
        return
    if prompts is None:
        raise UsageError("no PROMPTS given", hint="qvg batch PROMPTS --out FOLDER")
    wanted = length.asked()
    console = Console(is_quiet=output.quiet)
    bad: list[UsageError] = []
    planned = plan_jobs(
        model.request(size, family, seed, cache), console.note, prompts=prompts, **wanted, bad=bad
    )
    stdout = sys.stdout
    make_batch(
        planned,
        bad,
        prompts,
        out,
        console,
        address=ray,
        num_workers=workers,
        num_processes=gpus_per_worker,
        show=lambda row: show_data(json.dumps(row) if json_ else f"{row['folder']}/video.mp4", stdout),
    )
