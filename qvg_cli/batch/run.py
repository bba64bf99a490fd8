"""A batch from its file of prompts to its last video: what is left to do, the manifest, and what is said.

No torch: only the workers load a model.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from qvg_cli.batch.cluster import connect
from qvg_cli.batch.manifest import MANIFEST, Manifest, Row, Status
from qvg_cli.batch.progress import View
from qvg_cli.batch.store import Store
from qvg_cli.batch.worker import WorkerPlan
from qvg_cli.console import Console
from qvg_cli.engine.jobs import Planned, check_weights
from qvg_cli.engine.suggestions import check_processes
from qvg_cli.errors import QvgError, interruption
from qvg_cli.runs.identity import video_ids


def make_batch(
    planned: Sequence[Planned],
    bad: Sequence[QvgError],
    prompts: Path,
    out: str,
    console: Console,
    *,
    address: str,
    num_workers: int | None,
    num_processes: int,
    show: Callable[[Row], None],
) -> None:
    """Make every video that is not there yet; one that fails keeps no other from being made.

    Args:
        bad: What is wrong with lines that are no jobs.
        show: Takes the manifest's line of each video when it is whole.
    """
    check_weights(planned[0])
    check_processes(planned[0].config, num_processes)
    store = Store(out)
    store.prepare()
    for error in bad:
        console.note(f"skipping: {error}")
    console.note("starting Ray on this machine" if address == "local" else f"connecting to Ray at {address}")
    with store.hold(), connect(address) as cluster:
        device = cluster.device(planned[0].config.device)
        count = cluster.num_workers(num_workers, device, num_processes)
        jobs = _jobs(planned, device, console)
        there = store.finished(planned[0].config.backend)
        waiting = [job for job in jobs if job["folder"] not in there]
        manifest = Manifest(store)
        for job in jobs:
            if job["folder"] in there and not manifest.is_complete(job["id"]):
                # Its line was not written when an earlier start was killed.
                manifest.add({**job, "status": "complete"})
        left_out = [str(error) for error in bad]
        manifest.begin(str(prompts), [job["id"] for job in jobs], count, left_out)
        console.note(
            f"{len(jobs)} videos, {len(jobs) - len(waiting)} already done; {count} workers on {device}"
        )
        base = replace(planned[0], config=planned[0].config.model_copy(update={"device": device}))
        place = store.place if store.is_address else str(store.root.absolute())
        plan = WorkerPlan(base, waiting, place, os.getcwd(), device, num_processes)
        stopped = None
        if waiting:
            with View(store, manifest, console, show) as view:
                stopped = cluster.make(plan, count, view.hear)
    manifest.end()
    console.note(f"{manifest.line()}; status of each: {store.place}/{MANIFEST}")
    if stopped is not None:
        raise interruption(
            stopped, "stopped; finished videos are kept", hint="run the same command to continue"
        )
    failures = [_failure(job) for job in manifest.jobs("failed")] + left_out
    if failures:
        total = len(jobs) + len(bad)
        raise QvgError("\n  ".join([f"{len(failures)} of {total} videos failed", *failures]))


def status_text(place: str, *, is_json: bool) -> str:
    """How far the batch in `place` is; `UsageError` if there is none."""
    status = Status(Store(place).read(MANIFEST), place)
    if is_json:
        return json.dumps(status.to_json())
    running = [f"{job['worker']} makes {job['folder']}, try {job['tries']}" for job in status.jobs("running")]
    return "\n".join([status.line(), *running, *map(_failure, status.jobs("failed"))])


def _jobs(planned: Sequence[Planned], device: str, console: Console) -> list[Row]:
    """What workers and manifest are told of each video; one that is there twice is made once."""
    jobs = {}
    ids = video_ids([video.config for video in planned], device)
    for each, video in zip(ids, planned, strict=True):
        config = video.config
        if each in jobs:
            console.note(f"twice with seed {config.seed}, generated once: {config.prompt!r:.60}")
        folder = f"{config.backend}/{video.name}-{each}"
        jobs[each] = {"id": each, "prompt": config.prompt, "seed": config.seed, "folder": folder}
    return list(jobs.values())


def _failure(job: Row) -> str:
    return f"{job['prompt']!r:.60}, tried {job['tries']} times: {job['error']}"
