"""A batch on Ray: Ray Data maps the jobs over workers, and starts those anew that died, with their jobs.

The command's own process plans, writes the manifest, and shows how far all are. No torch.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from qvg_cli.batch.manifest import Row
from qvg_cli.batch.worker import Board, Worker, WorkerPlan
from qvg_cli.errors import MissingModelError, QvgError, UsageError
from qvg_cli.interrupts import Stopped, choose_moments, stop_if_asked, stop_on_signals

_POLL_SECONDS = 0.2
_STORE_BYTES = 128 * 2**20
"""Of objects that Ray shares on this machine; what goes through it are lines of text."""
_QUIET = {
    # Nothing is sent to Ray's makers, and a Ray of this command's own listens on 127.0.0.1 alone.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


class Cluster:
    """A Ray that this process is connected to; `num_gpus` counts those of all machines."""

    def __init__(self, ray: Any, *, is_local: bool) -> None:
        self._ray = ray
        self._is_local = is_local
        resources = ray.cluster_resources()
        self.num_gpus, self._num_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))

    def device(self, asked: str) -> str:
        """The kind of device of the workers; `UsageError` if there are no GPUs, or a single one is named."""
        if asked == "auto":
            return "cuda" if self.num_gpus else "cpu"
        if ":" in asked:
            raise UsageError(
                f"--device {asked} names one GPU", hint="Ray gives each worker its own: --device cuda"
            )
        if asked == "cuda" and not self.num_gpus:
            raise UsageError("--device cuda, but this Ray cluster has no GPU", hint="omit --device")
        return asked

    def num_workers(self, asked: int | None, device: str, num_processes: int) -> int:
        """As many workers as were asked for, or find room; `UsageError` if one machine has not the room."""
        what, count = ("GPUs", self.num_gpus) if device == "cuda" else ("CPUs", self._num_cpus)
        room = count // num_processes
        workers = asked or max(room, 1)
        if workers > room and self._is_local:
            raise UsageError(
                f"{workers} workers need {workers * num_processes} {what}, but this machine has {count}",
                hint="use fewer --workers or --gpus-per-worker",
            )
        return workers

    def make(self, plan: WorkerPlan, num_workers: int, hear: Callable[[Row], None]) -> BaseException | None:
        """Make every job of `plan`; returns what stopped it before its end: Ctrl-C or a signal.

        Args:
            hear: Takes lines of the manifest, and how far videos are, as they come; empty while nothing does.
        """
        ray = self._ray
        node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        each = {"num_cpus": plan.num_processes}
        if plan.device == "cuda":
            each = {"num_gpus": plan.num_processes, "num_cpus": 1}
        num_workers = min(num_workers, len(plan.jobs))
        board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=node).remote(num_workers)
        indices = [{"index": index} for index in range(len(plan.jobs))]
        # A job a block: a worker that dies takes none but its own along.
        made = ray.data.from_items(indices, override_num_blocks=len(indices)).map_batches(
            Worker,
            fn_constructor_args=(plan, board),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=num_workers),
            **each,
        )
        ended: Future[None] = Future()

        def run() -> None:
            try:
                for _ in made.iter_batches(batch_size=None):
                    pass
                ended.set_result(None)
            except BaseException as error:
                ended.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        stopped: BaseException | None = None
        while True:
            try:
                with choose_moments():
                    is_ended = bool(wait([ended], _POLL_SECONDS).done)
                    for event in [*ray.get(board.take.remote()), {}]:
                        hear(event)
                    if is_ended:
                        ended.result()
                        if (failure := ray.get(board.failure.remote())) is not None:
                            raise failure
                        return stopped
                if stopped is None:
                    stop_if_asked()
            except KeyboardInterrupt as stop:
                if stopped is not None:
                    # Whoever asks twice does not wait for the chunk in hand.
                    raise
                stopped = stop
                is_patient = isinstance(stop, Stopped) and str(stop) == "SIGUSR1"
                ray.get(board.stop.remote(signal.SIGUSR1 if is_patient else signal.SIGTERM))
            except ray.exceptions.RayError as error:
                if stopped is not None:
                    # Who stopped this has stopped Ray too.
                    return stopped
                first, *_ = str(error).strip().splitlines() or [type(error).__name__]
                hint = "run the same command to continue"
                raise QvgError(f"Ray has stopped: {first}", hint=hint) from error


@contextmanager
def connect(address: str) -> Iterator[Cluster]:
    """Connect to Ray, or start one for this block.

    Args:
        address: "local" starts one on this machine; "auto" takes the one that runs here; else its address.
    """
    is_local = address == "local"
    # Its messages are in its own logs; lines of ours say what has become of each job.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if is_local:
        os.environ.update(_QUIET)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingModelError("qvg batch needs Ray", hint='install with: pip install "qvg[ray]"') from error
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ == "PlainRayHandler":
            handler.setLevel(logging.CRITICAL)
    own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES} if is_local else {}
    # There it tells of workers that died, as we do, and of machines that a cluster lacks.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if is_local else sys.stderr):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
        except (OSError, ValueError, RuntimeError) as error:
            hint = "start one with ray start --head, or use --ray local"
            if is_local:
                hint = "set RAY_TMPDIR to a short path on a local disk"
            raise UsageError(f"no Ray at {address}: {error}", hint=hint) from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            # It takes the signals when it starts.
            with stop_on_signals():
                yield Cluster(ray, is_local=is_local)
        finally:
            ray.shutdown()
