"""What `qvg generate` and `qvg extend` do alike: make what was planned, or go on with a run. No torch."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qvg_cli.batch.shards import Shard
from qvg_cli.commands import options
from qvg_cli.config.load import Request
from qvg_cli.console import Console, show_data
from qvg_cli.engine.jobs import Planned, check_weights
from qvg_cli.engine.lengths import fit_length, rounding_note
from qvg_cli.errors import UsageError
from qvg_cli.files import RunDir, finish_removal
from qvg_cli.models.registry import load_config, plan_video
from qvg_cli.quick_start import quick_start
from qvg_cli.report.forecasts import make_plan
from qvg_cli.report.run_files import is_finished


def make_or_plan(
    planned: Sequence[Planned],
    run: options.Run,
    console: Console,
    *,
    bad: Sequence[UsageError] = (),
    shard: Shard | None = None,
) -> None:
    """Make the videos of a command; with --dry-run, say what each of them needs."""
    if run.dry_run:
        plan = make_plan(planned[:1], run.gpu, num_videos=len(planned))
        show_data(json.dumps(plan.to_json()) if run.json_ else str(plan))
        return
    check_weights(planned[0])
    with quick_start(planned[0].config.device):
        from qvg_cli.batch.serial import make_videos

    make_videos(planned, run.out, console, is_json=run.json_, bad=bad, shard=shard)


def resume_run(
    folder: Path,
    request: Request,
    console: Console,
    *,
    seconds: float | None,
    frames: int | None,
    is_json: bool,
) -> None:
    """Go on with the run in `folder`, which refuses what would change it; a complete one is left as it is."""
    run = RunDir(folder)
    if not run.config.is_file():
        raise UsageError(
            f"{folder} is not the folder of a run: it has no run.yaml",
            hint="use the folder that contains run.yaml, e.g. results/self-forcing/NAME",
        )
    if is_finished(run):
        finish_removal(run.state)
        console.note(f"the run in {folder} is already complete; nothing to resume")
        show_data(str(run.video))
        return
    if not run.state.is_dir():
        raise UsageError(
            f"the run in {folder} has no checkpoint to resume from",
            hint=f"generate it again with --config {run.config}",
        )
    config = load_config(replace(request, file=run.config)).config
    config = fit_length(config, seconds=seconds, frames=frames)
    plan = plan_video(config)
    if note := rounding_note(config, plan, seconds=seconds, frames=frames):
        console.note(note)
    video = Planned(config, plan, folder.name)
    check_weights(video)
    with quick_start(config.device):
        from qvg_cli.batch.serial import resume_video

    resume_video(video, run, console, is_json=is_json)
