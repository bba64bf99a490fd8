"""The kernels of one chunk by the time they take, and how long the device waited for the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

_NUM_KERNELS = 30


@contextmanager
def profile(is_on: bool, out: Path, name: str, device: torch.device) -> Iterator[None]:
    """Write `<out>.<name>.profile.txt` about what runs inside; the times of that chunk are longer for it."""
    if not is_on:
        yield
        return
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with torch_profile(activities=activities, acc_events=True) as found:
        yield
        if is_cuda:
            torch.cuda.synchronize(device)
    order = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    averages = found.key_averages()
    text = averages.table(sort_by=order, row_limit=_NUM_KERNELS, max_name_column_width=90)
    text += "\nby the host's time\n"
    text += averages.table(sort_by="self_cpu_time_total", row_limit=_NUM_KERNELS)
    if is_cuda:
        text = _busy(found) + text
    Path(f"{out}.{name}.profile.txt").write_text(text, encoding="utf-8")


def _busy(found: torch_profile) -> str:
    """How much of the time from the first kernel to the last the device was at work, and exchanged."""
    # Not `found.events()`: it takes a minute for the kernels of a chunk.
    kernels = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns(), "nccl" in event.name().lower())
        for event in found.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
    )
    busy = gap = exchange = num_exchanges = 0
    end = kernels[0][0]
    for start, stop, is_exchange in kernels:
        gap += max(0, start - end)
        busy += max(0, stop - max(start, end))
        end = max(end, stop)
        exchange += is_exchange * (stop - start)
        num_exchanges += is_exchange
    return (
        f"{len(kernels)} kernels and copies, device at work {busy / 1e6:.1f} ms, idle {gap / 1e6:.1f} ms\n"
        f"{num_exchanges} exchanges among processes, {exchange / 1e6:.1f} ms with waiting for others\n"
    )
