"""Compile what a first call launches side by side: in a warm-up none of its kernels runs.

A kernel takes up to 3 s to compile and to load, and a first call launches about ten. Operations of torch do
run, on memory that no kernel has written: their results are dropped, and cuDNN has made its plan.
"""

import os
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import triton

GROUPED = ("heads", "key_rows", "total_heads", "first_head")
"""Numbers that change with the heads of a group: a kernel compiled for one of their values would be compiled
again when a longer history has heads go in smaller groups.
"""

SLICED = ("units", "key_units", "value_units", "own_logsumexp")
"""Tensors of one number a head or query, of which a group gets a slice: it may begin anywhere."""

_compiled: ContextVar[list[Any] | None] = ContextVar("compiled", default=None)
_warm: set[Hashable] = set()


class Kernel:
    """A Triton kernel to launch; in a warm-up it is compiled instead.

    Attributes:
        function: What `triton.jit` made of it.
    """

    def __init__(self, function: Any) -> None:
        self.function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        compiled = _compiled.get()
        if compiled is None:
            launcher: Callable[..., Any] = self.function[grid]
            return launcher
        return lambda *arguments, **options: compiled.append(
            self.function.warmup(*arguments, grid=grid, **options)
        )


def kernel(**options: Any) -> Callable[[Any], Kernel]:
    """Decorator of a function that is launched from here; `options` are those of `triton.jit`."""
    return lambda function: Kernel(triton.jit(function, **options))


def warm_up(device: torch.device, key: Hashable, call: Callable[[], object]) -> None:
    """Compile what `call` launches, unless it has been with this `key`.

    Args:
        key: The same for calls that launch the same kernels. A kernel that is not among them is compiled when
            it is launched, as any is.
        call: Made once, and none of its kernels runs: it must keep nothing of what they would have written.
    """
    # Triton 3.4 compiles one kernel after the other.
    if device.type != "cuda" or key in _warm or not hasattr(triton, "AsyncCompileMode"):
        return
    _warm.add(key)
    compiled: list[Any] = []
    token = _compiled.set(compiled)
    try:
        with ThreadPoolExecutor(os.cpu_count()) as executor:
            with triton.AsyncCompileMode(executor):
                call()
            # Up to Triton 3.6 a C compiler makes a launcher for each.
            kernels = {id(kernel): kernel for kernel in compiled}.values()
            list(executor.map(partial(_load, device), kernels))
    finally:
        _compiled.reset(token)


def _load(device: torch.device, kernel: Any) -> None:
    """Load what a kernel needs to be launched; `run` does so when it is first asked for."""
    with torch.cuda.device(device):
        _ = (kernel.result() if hasattr(kernel, "result") else kernel).run
