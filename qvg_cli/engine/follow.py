"""A process that makes the videos of another one with it, started by torchrun."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from qvg_cli.engine.engine import Engine
from qvg_cli.engine.parallel import answered, connect, join
from qvg_cli.environment import find_launch

_GRACE_SECONDS = 20.0
"""What the others leave to the first when all are asked to end: it ends the step, and saves."""


def follow() -> None:
    """Be one of the others, until the first process ends, or a model or a video fails."""
    launch = find_launch()
    _leave_signals_to_the_first()
    control = connect(launch)
    engine: Engine | None = None
    while True:
        messages: list[Any] = [None]
        with answered():
            dist.broadcast_object_list(messages, src=0, group=control)
        what, about = messages[0]
        if what == "end":
            dist.destroy_process_group()
            return
        if what == "load":
            config, device_type = about
            device = torch.device(device_type)
            if device_type == "cuda":
                device = torch.device("cuda", launch.local_rank)
                torch.cuda.set_device(device)
            engine = Engine.load_config(config, device, parallel=join(config, launch, device, control))
        elif engine is not None:
            for _ in engine.rollout(about):
                pass


def _leave_signals_to_the_first() -> None:
    """The first process hears Ctrl-C and SIGTERM, saves, and ends all."""
    asked: list[int] = []

    def wait_or_end(number: int, frame: FrameType | None) -> None:
        if asked:
            os._exit(1)
        asked.append(number)
        timer = threading.Timer(_GRACE_SECONDS, os._exit, (1,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, wait_or_end)
