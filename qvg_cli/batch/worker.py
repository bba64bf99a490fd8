"""What a worker of a batch does: it loads a model once, and makes one job after the other.

The board is the one place that all workers and the command know: it counts the tries of each job, also those
that ended a worker, hands on what has happened, and says when all are to stop.
"""

import asyncio
import os
import signal
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
from qvg_cli.errors import Interrupted, QvgError, UsageError, is_out_of_memory, shown_error
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

    def __init__(self, num_workers: int) -> None:
        self._max_starts = MAX_TRIES * num_workers
        self._num_starts = 0
        self._tries: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._events: list[Row] = []
        self._stop: int | None = None
        self._failure: QvgError | None = None
        self._is_stopped = asyncio.Event()

    async def start_worker(self) -> None:
        """Note that a worker loads its model, and end the batch where so many have died of it."""
        self._num_starts += 1
        if self._num_starts > self._max_starts:
            await self.abandon(QvgError("workers die while they load the model", hint="Ray's log says why"))

    async def abandon(self, failure: QvgError) -> None:
        """Let all workers stop: none of them can make anything."""
        self._failure = failure
        await self.stop(signal.SIGTERM)

    async def failure(self) -> QvgError | None:
        """Why all was abandoned, if it was."""
        return self._failure

    async def begin(self, row: Row) -> tuple[int, str | None] | None:
        """The number of a job's try that begins, and how the last one ended; `None` where all are to stop."""
        if self._stop is not None:
            return None
        self._num_starts = 0
        job = row["id"]
        self._tries[job] += 1
        if self._tries[job] <= MAX_TRIES:
            self._events.append({**row, "status": "running", "tries": self._tries[job]})
        return self._tries[job], self._errors.get(job)

    async def fail(self, job: str, error: str) -> None:
        self._errors[job] = error

    async def report(self, event: Row) -> None:
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
        base: A video; those of the jobs differ by prompt and seed.
        jobs: What the manifest says of each: id, prompt, seed, folder.
        directory: In which the command was given, for names of files that are relative.
    """

    base: Planned
    jobs: Sequence[Row]
    place: str
    directory: str
    device: str
    num_processes: int

    def video(self, job: Row) -> Planned:
        config = self.base.config.model_copy(update={"prompt": job["prompt"], "seed": job["seed"]})
        return replace(self.base, config=config)


class Worker(Console, Progress):
    """Makes jobs with one loaded model; Ray keeps it in a process of its own.

    As a console it shows nothing, and lets the `board`, a handle of the `Board`, know of every chunk.
    """

    def __init__(self, plan: WorkerPlan, board: Any) -> None:
        import torch

        super().__init__(is_quiet=True)
        set_up(is_verbose=False)
        if os.path.isdir(plan.directory):
            os.chdir(plan.directory)
        self._plan, self._board = plan, board
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._store = Store(plan.place)
        self._device = torch.device(plan.device)
        self._encoded = range(0)
        self._folder, self._num_chunks, self._num_done = "", 0, 0
        self._ask("start_worker")
        threading.Thread(target=lambda: ask_to_stop(self._ask("wait_for_stop")), daemon=True).start()
        try:
            self._load()
        except Exception as error:
            # It would fail in every worker, and to raise it here would let Ray try for minutes.
            self._ask("abandon", shown_error(error))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """Make the job of a batch of one, and let the board know what has become of it."""
        if (ended := self._make(int(batch["index"][0]))) is not None:
            self._ask("report", ended)
        return {"index": []}

    def _load(self) -> None:
        from qvg_cli.runs.make import load, warn_of_memory

        if self._plan.num_processes > 1:
            _start_others(self._plan.num_processes)
        warn_of_memory(self._plan.base, self._device, self)
        self._engine = load(self._plan.base.config, self._device, self)

    def _ask(self, method: str, *arguments: object) -> Any:
        import ray

        return ray.get(getattr(self._board, method).remote(*arguments))

    def _make(self, index: int) -> Row | None:
        """The line of the manifest; `None` where all are to stop."""
        started = time.perf_counter()
        row = {**self._plan.jobs[index], "worker": self._name}
        while True:
            if (begun := self._ask("begin", row)) is None:
                return None
            tries, error = begun
            row |= {"tries": min(tries, MAX_TRIES), "seconds": round(time.perf_counter() - started, 3)}
            if tries > MAX_TRIES:
                return {**row, "status": "failed", "error": error or "its worker died"}
            if error is not None:
                time.sleep(_PAUSE_SECONDS[tries - 2])
            try:
                self._make_once(index)
            except Interrupted as stop:
                return {**row, "status": "stopped", "error": str(stop)}
            except Exception as failure:
                LOG.debug("".join(traceback.format_exception(failure)))
                told = "; ".join([str(shown_error(failure)), *getattr(failure, "__notes__", ())])
                self._ask("fail", row["id"], told)
                if self._is_lost(failure):
                    # Ray starts it anew.
                    os._exit(1)
            else:
                return {**row, "status": "complete", "seconds": round(time.perf_counter() - started, 3)}

    def _make_once(self, index: int) -> None:
        from qvg_cli.runs.make import make_video
        from qvg_cli.runs.run import Run

        jobs = self._plan.jobs
        video, self._folder = self._plan.video(jobs[index]), jobs[index]["folder"]
        if self._store.has(self._folder):
            # Its worker died after the last file.
            return
        folder = self._store.open_run(self._folder)
        # A whole one could not be moved to its place.
        if not is_finished(folder):
            if index not in self._encoded:
                self._encoded = range(index, index + _AHEAD)
                self._engine.read_prompts([self._plan.video(job) for job in jobs[index : index + _AHEAD]])
            try:
                run = Run(video, folder, self._device, self.note)
            except UsageError as error:
                # Cut off while it was begun, or damaged.
                LOG.info("started again: %s", error)
                remove_folder(folder.state)
                run = Run(video, folder, self._device, self.note)
            make_video(run, self._engine, self)
        self._store.deliver(folder)

    def _is_lost(self, error: Exception) -> bool:
        """Whether others wait for this process within the video, or the GPU has refused to go on."""
        if self._plan.num_processes > 1:
            return True
        return self._device.type == "cuda" and not is_out_of_memory(error) and "CUDA error" in str(error)

    @contextmanager
    def progress(self, calls: Sequence[int], num_done: int = 0) -> Iterator[Progress]:
        self._num_chunks, self._num_done = len(calls), num_done
        yield self

    def chunk_done(self, status: str) -> None:
        self._num_done += 1
        event = {"chunk": self._num_done, "chunks": self._num_chunks}
        self._board.report.remote({"folder": self._folder, "worker": self._name, **event})


def _start_others(num_processes: int) -> None:
    """Start the other processes of a group in which this one is the first, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "qvg-batch"}
    os.environ |= names | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(num_processes))
    for rank in reversed(range(num_processes)):
        os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
        if rank:
            subprocess.Popen([sys.executable, "-m", "qvg_cli"])
