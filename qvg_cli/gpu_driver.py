"""What a GPU needs before its first kernel, prepared while torch is imported: each takes up to a second."""

import ctypes
from contextlib import suppress
from threading import Thread


def wake(device: str) -> None:
    """Begin to open the GPU that a setting `device` means; what is wrong with it, torch will say."""
    kind, _, index = device.partition(":")
    if kind in ("auto", "cuda") and (index or "0").isdecimal():
        Thread(target=_open, args=(int(index or 0),), daemon=True).start()


def _open(index: int) -> None:
    # NVIDIA, CUDA Driver API: what torch uses of a process, too, is the primary context.
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index):
        return
    driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    with suppress(Exception):
        # Compiled kernels are found by a hash of Triton itself, half a gigabyte, which is kept.
        from triton.runtime.cache import triton_key

        triton_key()
