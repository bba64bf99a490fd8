"""What a worker of a batch does: it loads a model once, and makes one job after the other.

The board is the one place that all workers and the command know: it counts the tries of each job, also those
that ended a worker, hands on what has happened, and says when all are to stop.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any

from qvg_cli.batch.manifest import Row
from qvg_cli.batch.store import Store
from qvg_cli.console import Console, Progress
from qvg_cli.engine.jobs import Planned
from qvg_cli.errors import Interrupted, UsageError, is_out_of_memory, shown_error
from qvg_cli.files import remove_folder
from qvg_cli.interrupts import ask_to_stop
from qvg_cli.logs import set_up
from qvg_cli.report.run_files import is_finished

MAX_TRIES = 3
_PAUSE_SECONDS = (1.0, 5.0)
"""Before the second try and before the third."""
_AHEAD = 100
"""Prompts that are encoded together, so that the text encoder, the largest part, is loaded once for them."""
LOG = getLogger(__name__)


class Board:
    """What the workers and the command tell each other."""

    def __init__(self) -> None:
        self._tries: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._events: list[Row] = []
        self._stop: int | None = None
        self._is_stopped = asyncio.Event()

    async def begin(self, row: Row) -> tuple[int, str | None] | None:
        """The number of a job's try that begins, and how the last one ended; `None` where all are to stop."""
        if self._stop is not None:
            return None
        job = row["id"]
        self._tries[job] += 1
        if self._tries[job] <= MAX_TRIES:
            self._events.append({**row, "status": "running", "tries": self._tries[job]})
        return self._tries[job], self._errors.get(job)

    async def fail(self, job: str, error: str) -> None:
        """Remember how a try ended."""
        self._errors[job] = error

    async def report(self, event: Row) -> None:
        """Take an event for the command."""
        self._events.append(event)

    async def take(self) -> list[Row]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    async def stop(self, number: int) -> None:
        """Let all workers stop as the signal `number` asks for."""
        self._stop = number
        self._is_stopped.set()

    async def wait_for_stop(self) -> int:
        """The signal, once there is one."""
        await self._is_stopped.wait()
        assert self._stop is not None
        return self._stop


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker of a batch is told.

    Attributes:
        base: The video of the first job; those of the others differ by prompt, seed and name.
        prompts: Of all jobs, in their order.
        place: Where the videos go.
        device: Kind of device: "cpu" or "cuda".
        num_processes: That make each video together.
    """

    base: Planned
    prompts: Sequence[str]
    place: str
    device: str
    num_processes: int


class Worker:
    """Makes jobs with one loaded model; Ray keeps it in a process of its own.

    Args:
        board: Handle of the `Board`.

    Raises:
        QvgError: The model cannot be loaded.
    """

    def __init__(self, plan: WorkerPlan, board: Any) -> None:
        import torch

        from qvg_cli.runs.make import load, warn_of_memory

        set_up(is_verbose=False)
        self._plan = plan
        self._board = board
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._store = Store(plan.place)
        if plan.num_processes > 1:
            _start_others(plan.num_processes)
        self._device = torch.device(plan.device)
        console = Console(is_quiet=True)
        warn_of_memory(plan.base, self._device, console)
        self._engine = load(plan.base.config, self._device, console)
        self._encoded = range(0)
        threading.Thread(target=self._hear_stop, daemon=True).start()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Make the job of a batch of one, and let the board know what has become of it."""
        import ray

        ended = self._make(json.loads(batch["job"][0]))
        if ended is not None:
            ray.get(self._board.report.remote(ended))
        return {"id": []}

    def _make(self, job: Row) -> dict[str, Any] | None:
        """The line of the manifest; `None` where all are to stop."""
        import ray

        started = time.perf_counter()
        row = {**_about(job), "worker": self._name}
        while True:
            begun = ray.get(self._board.begin.remote(row))
            if begun is None:
                return None
            tries, error = begun
            row |= {"tries": min(tries, MAX_TRIES), "seconds": round(time.perf_counter() - started, 3)}
            if tries > MAX_TRIES:
                return {**row, "status": "failed", "error": error or "its worker died"}
            if error is not None:
                time.sleep(_PAUSE_SECONDS[tries - 2])
            try:
                self._make_once(job)
            except Interrupted as stop:
                return {**row, "status": "stopped", "error": str(stop)}
            except Exception as failure:
                LOG.debug("".join(traceback.format_exception(failure)))
                told = "; ".join([str(shown_error(failure)), *getattr(failure, "__notes__", ())])
                ray.get(self._board.fail.remote(job["id"], told))
                if self._is_lost(failure):
                    # Ray starts it anew.
                    os._exit(1)
            else:
                seconds = round(time.perf_counter() - started, 3)
                return {**row, "status": "complete", "seconds": seconds}

    def _make_once(self, job: Row) -> None:
        """Make the video, or go on with it."""
        from qvg_cli.runs.make import make_video
        from qvg_cli.runs.run import Run

        config = self._plan.base.config
        video = replace(
            self._plan.base,
            config=config.model_copy(update={"prompt": job["prompt"], "seed": job["seed"]}),
        )
        if self._store.has(job["folder"]):
            # Its worker died after the last file.
            return
        folder = self._store.open_run(job["folder"])
        if is_finished(folder):
            # It could not be moved to its place.
            self._store.deliver(folder)
            return
        if job["index"] not in self._encoded:
            self._encoded = range(job["index"], job["index"] + _AHEAD)
            ahead = self._plan.prompts[self._encoded.start : self._encoded.stop]
            self._engine.read_prompts(
                [replace(video, config=config.model_copy(update={"prompt": each})) for each in ahead]
            )
        console = _Reports(self._board, job["folder"], self._name)
        try:
            run = Run(video, folder, self._device, console.note)
        except UsageError as error:
            # Cut off while it was begun, or damaged.
            LOG.info("started again: %s", error)
            remove_folder(folder.state)
            run = Run(video, folder, self._device, console.note)
        make_video(run, self._engine, console)
        self._store.deliver(folder)

    def _is_lost(self, error: Exception) -> bool:
        """Whether this process can make nothing after `error`.

        The others of its group wait within the video, or the GPU has refused to go on.
        """
        if self._plan.num_processes > 1:
            return True
        return self._device.type == "cuda" and not is_out_of_memory(error) and "CUDA error" in str(error)

    def _hear_stop(self) -> None:
        import ray

        ask_to_stop(ray.get(self._board.wait_for_stop.remote()))


class _Reports(Console):
    """Shows nothing, and lets the board know of every chunk."""

    def __init__(self, board: Any, folder: str, worker: str) -> None:
        super().__init__(is_quiet=True)
        self._board, self._folder, self._worker = board, folder, worker

    @contextmanager
    def progress(self, calls: Sequence[int], num_done: int = 0) -> Iterator[Progress]:
        yield _Chunks(self, len(calls), num_done)

    def report(self, chunk: int, num_chunks: int) -> None:
        """Let the board know how far the video is."""
        self._board.report.remote(
            {"folder": self._folder, "worker": self._worker, "chunk": chunk, "chunks": num_chunks}
        )


class _Chunks:
    def __init__(self, reports: _Reports, num_chunks: int, num_done: int) -> None:
        self._reports, self._num_chunks, self._num_done = reports, num_chunks, num_done

    def step(self) -> None:
        pass

    def chunk_done(self, status: str) -> None:
        self._num_done += 1
        self._reports.report(self._num_done, self._num_chunks)


def _about(job: Row) -> dict[str, Any]:
    """What the manifest says of a job whatever becomes of it."""
    return {key: job[key] for key in ("id", "prompt", "seed", "folder")}


def _start_others(num_processes: int) -> None:
    """Start the other processes of a group in which this one is the first, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "qvg-batch",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "RANK": "0",
        "LOCAL_RANK": "0",
    }
    for rank in range(1, num_processes):
        others = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        subprocess.Popen([sys.executable, "-m", "qvg_cli"], env=others)
