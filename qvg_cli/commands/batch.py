"""`qvg batch`: a file of prompts over workers on Ray, on one machine or on many."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from qvg_cli.commands.options import (
    OUTPUT,
    WORKERS,
    CacheOptions,
    FamilyOptions,
    LengthOptions,
    ModelOptions,
    OutputOptions,
    SeedOptions,
    SizeOptions,
    with_options,
)
from qvg_cli.console import Console, show_data
from qvg_cli.errors import UsageError


@with_options
def batch(
    model: ModelOptions,
    length: LengthOptions,
    size: SizeOptions,
    family: FamilyOptions,
    seed: SeedOptions,
    cache: CacheOptions,
    output: OutputOptions,
    prompts: Annotated[
        Path | None,
        typer.Argument(
            metavar="PROMPTS",
            help="A .jsonl file with one object per line (keys prompt, seed, name), or a .txt file with one "
            "prompt per line.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Write results to FOLDER/<model>/: a folder that all workers can access, or an address "
            "such as "
            "s3://bucket/videos.",
        ),
    ] = "results",
    ray: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS|auto|local",
            help="Ray cluster: local starts one on this machine, auto connects to the one running here.",
            rich_help_panel=WORKERS,
        ),
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Number of workers [default: as many as fit].",
            show_default=False,
            rich_help_panel=WORKERS,
        ),
    ] = None,
    gpus_per_worker: Annotated[
        int,
        typer.Option(
            metavar="K",
            min=1,
            help="GPUs of one machine that share a video; on CPUs, processes.",
            rich_help_panel=WORKERS,
        ),
    ] = 1,
    status: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Show the progress of the batch in FOLDER, from any machine, and exit.",
            show_default=False,
        ),
    ] = None,
    json_: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object per video to stdout, or with --status a single one.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
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
    length.check()
    console = Console(is_quiet=output.quiet)
    bad: list[UsageError] = []
    planned = plan_jobs(
        model.request(size, family, seed, cache),
        console.note,
        prompts=prompts,
        seconds=length.seconds,
        frames=length.frames,
        segments=length.segments,
        bad=bad,
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
