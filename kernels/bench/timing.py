"""Times of GPU work, by CUDA events, with the arms of a comparison in turn."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Milliseconds:
    """Of one arm over all rounds."""

    median: float
    lowest: float
    highest: float


def time_arms(
    arms: Mapping[str, Callable[[], object]], rounds: int, *, is_ahead: bool = True
) -> dict[str, Milliseconds]:
    """Milliseconds of each arm; every arm runs once a round, and has run before.

    Args:
        is_ahead: A GiB is filled a few times before each, so that launching is ahead of the GPU and its cache
            is empty. Else an idle GPU waits for what is launched, and that counts.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    filled = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    for _ in range(rounds):
        for name, arm in arms.items():
            for _ in range(4 if is_ahead else 0):
                filled.zero_()
            if not is_ahead:
                torch.cuda.synchronize()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            arm()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: Milliseconds(statistics.median(t), min(t), max(t)) for name, t in times.items()}


def time_alone(run: Callable[[], object], rounds: int) -> float:
    """Median milliseconds of one arm, after a first run."""
    run()
    return time_arms({"alone": run}, rounds)["alone"].median


def copy_bandwidth() -> float:
    """Bytes a second of a device copy, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / (time_alone(lambda: target.copy_(source), 15) / 1000)
