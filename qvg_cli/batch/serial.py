"""All videos of one command: the model is loaded once, and no video keeps the others from being made."""

import gc
import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch

from qvg_cli.batch.shards import Shard, find_begun
from qvg_cli.console import Console, show_data
from qvg_cli.device import resolve_device
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.errors import BusyError, Interrupted, QvgError, is_out_of_memory, shown_error
from qvg_cli.files import RunDir, prepare_folder
from qvg_cli.interrupts import stop_if_asked
from qvg_cli.logs import command_began
from qvg_cli.report.run_files import is_finished
from qvg_cli.report.words import short_prompt
from qvg_cli.runs.make import load, make_video, prompts_heard, warn_of_memory
from qvg_cli.runs.run import Run
from qvg_cli.runs.summary import Times
from qvg_cli.video.io import check_encoder

LOG = getLogger(__name__)


def make_videos(
    planned: Sequence[Planned],
    out: Path,
    console: Console,
    *,
    is_json: bool,
    bad: Sequence[QvgError] = (),
    shard: Shard | None = None,
) -> None:
    """Load the model once and make every video, each in its own folder; one may fail or be stopped alone.

    Args:
        bad: What is wrong with videos that could not be planned.
        shard: Videos that are there are not made again, and those that were begun go on; a manifest, written
            last, says what has become of each.
    """
    check_encoder()
    config = planned[0].config
    device = resolve_device(config.device)
    # Before the weights are read: a folder that cannot be written costs no waiting.
    folder = prepare_folder(out / config.backend)
    warn_of_memory(planned[0], device, console)
    batch = Batch(planned, folder, device, console, is_json=is_json, is_restarted=shard is not None)
    for error in bad:
        console.note(f"skipping: {error}")
    if shard is None:
        batch.make()
    else:
        with shard.hold(folder):
            batch.make()
            shard.write_manifest(folder, batch.videos, bad)
        console.note(f"summary of the shard: {shard.manifest(folder)}")
    failures = [*batch.failures, *bad]
    if len(planned) == 1 and batch.failures and not bad:
        raise batch.failures[0]
    if failures:
        lines = [str(failure) for failure in failures]
        raise QvgError("\n  ".join([f"{len(failures)} of {len(planned) + len(bad)} videos failed", *lines]))


def resume_video(video: Planned, folder: RunDir, console: Console, *, is_json: bool) -> None:
    """Go on with a run that was cut off, from its last whole chunk; `UsageError` if it was another run."""
    check_encoder()
    device = resolve_device(video.config.device)
    run = Run(video, folder, device, console.note, Times(command_began()))
    try:
        warn_of_memory(video, device, console)
        engine = load(video.config, device, console)
    except BaseException:
        run.close()
        raise
    make_video(run, engine, console, on_end=partial(show_run, is_json=is_json))


def show_run(run: Run, *, is_json: bool) -> None:
    show_data(json.dumps(run.figures()) if is_json else str(run.folder.video))


@dataclass
class Batch:
    """Videos that are made one after the other, into runs in `folder`.

    Attributes:
        is_restarted: Runs of these videos that are in `folder` already are used.
        videos: What has become of each: prompt, seed, folder and status.
        failures: Of the videos that were not made whole.
    """

    planned: Sequence[Planned]
    folder: Path
    device: torch.device
    console: Console
    is_json: bool
    is_restarted: bool
    videos: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    _engine: Engine | None = None

    def make(self) -> None:
        """Make them all; Ctrl-C, or a model that cannot be loaded, ends it."""
        times = Times(command_began())
        for number, video in enumerate(self.planned, start=1):
            stop_if_asked()
            if len(self.planned) > 1:
                self.console.note(
                    f"video {number}/{len(self.planned)}: {short_prompt(video.config.prompt)!r}"
                )
            begun = find_begun(self.folder, video) if self.is_restarted else None
            is_done = begun is not None and is_finished(begun)
            if self._engine is None and not is_done:
                self._engine = load(video.config, self.device, self.console)
                with times.measure("text"), prompts_heard(self.console):
                    self._engine.read_prompts(self.planned[number - 1 :])
                # While that took its time, a part that overlaps with this one may have begun it.
                begun = find_begun(self.folder, video) if self.is_restarted else None
                is_done = begun is not None and is_finished(begun)
            if begun is not None and is_done:
                self._show_finished(video, begun)
                continue
            assert self._engine is not None
            folder = begun or RunDir.create(self.folder.parent, self.folder.name, video.name)
            try:
                run = Run(video, folder, self.device, self.console.note, times)
                make_video(run, self._engine, self.console, on_end=partial(show_run, is_json=self.is_json))
            except (Interrupted, KeyboardInterrupt):
                raise
            except Exception as error:
                LOG.debug("".join(traceback.format_exception(error)))
                self._note_failure(number, video, folder, error)
            else:
                self._add(video, folder, "complete")
            times = Times()

    def _show_finished(self, video: Planned, run: RunDir) -> None:
        self.console.note(f"already done, skipping: {run.path}")
        self._add(video, run, "complete")
        shown = {"status": "complete", "folder": str(run.path), "video": str(run.video)}
        show_data(json.dumps(shown) if self.is_json else str(run.video))

    def _note_failure(self, number: int, video: Planned, run: RunDir, error: Exception) -> None:
        self._add(video, run, "running" if isinstance(error, BusyError) else "failed")
        if len(self.planned) == 1:
            self.failures.append(error)
            return
        told = "; ".join([str(shown_error(error)), *getattr(error, "__notes__", ())])
        self.console.note(f"failed: {told}")
        self.failures.append(QvgError(f"video {number}, {video.config.prompt!r:.60}: {told}"))
        if is_out_of_memory(error):
            # What the traceback holds is freed before the next video needs it.
            error.__traceback__ = None
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _add(self, video: Planned, run: RunDir, status: str) -> None:
        config = video.config
        folder = run.path.name if run.path.exists() else None
        self.videos.append({"prompt": config.prompt, "seed": config.seed, "folder": folder, "status": status})
