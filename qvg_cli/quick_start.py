"""The start of a command that makes a video: what a GPU takes long for goes beside the imports of Python."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def quick_start(device: str) -> Iterator[None]:
    """Around the imports of what computes: prepares the GPU that a setting `device` means meanwhile.

    What is wrong with it, torch will say.
    """
    kind, _, index = device.partition(":")
    # What is imported stays: looking for garbage in it takes a sixth of the time, now and later.
    gc.disable()
    try:
        if kind in ("auto", "cuda") and (index or "0").isdecimal():
            opening = Thread(target=_open, args=(int(index or 0),))
            opening.start()
            import torch  # noqa: F401

            # Two threads must not import the same package: each may see a part of it.
            opening.join()
            Thread(target=_load_kernels, args=(int(index or 0),)).start()
        yield
    finally:
        gc.freeze()
        gc.enable()


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
        # The first kernel of all imports it.
        import triton.experimental.gluon  # noqa: F401


def _load_kernels(index: int) -> None:
    import torch

    with suppress(Exception), torch.cuda.device(index):
        load_kernels(torch.device("cuda", index))
        torch.cuda.current_stream().synchronize()


def load_kernels(device: torch.device) -> None:
    """Call of torch what a first chunk calls, on a few numbers: the driver loads a kernel when it is called.

    They come by type: the kernels of a sum of bfloat16 and of float64 are two.
    """
    import torch
    from torch.nn import functional

    with torch.inference_mode(), device:
        # cuBLAS: a projection, one of few rows, one with GELU; in float32 for the timestep.
        matrix = torch.ones(256, 256, dtype=torch.bfloat16)
        states = functional.linear(matrix, matrix, matrix[0])
        functional.linear(matrix[:1], matrix, matrix[0])
        torch._addmm_activation(matrix[0], matrix, matrix, use_gelu=True)
        functional.linear(matrix[:1].float(), matrix.float(), matrix[0].float())
        # cuDNN: the VAE's convolutions and the transformer's patches.
        volume = torch.ones(1, 96, 3, 16, 16, dtype=torch.bfloat16).to(memory_format=torch.channels_last_3d)
        kernel = torch.ones(96, 96, 3, 3, 3, dtype=torch.bfloat16).to(memory_format=torch.channels_last_3d)
        image = functional.conv3d(volume, kernel, kernel[:, 0, 0, 0, 0])[:, :, 0]
        functional.conv2d(image, kernel[:, :, 0].contiguous(memory_format=torch.channels_last), padding=1)
        functional.conv3d(
            torch.ones(1, 16, 1, 8, 8, dtype=torch.bfloat16), kernel[:, :16, :1, :2, :2].contiguous()
        )
        # Attention, to the text and to a chunk's own keys.
        heads = matrix.view(1, 128, 4, 128).transpose(1, 2)
        functional.scaled_dot_product_attention(heads, heads, heads)
        if device.type == "cuda":
            torch.ops.aten._scaled_dot_product_cudnn_attention(heads, heads, heads, None, True)
        # Between them.
        functional.layer_norm(matrix.float(), (256,))
        functional.gelu(states, approximate="tanh")
        for each in (states, states.float()):
            functional.silu(each).add(each).mul(each).mul_(2.0)
        functional.normalize(volume, dim=1) * 9.0
        torch.cat([volume, volume], dim=2)
        functional.interpolate(image.float(), scale_factor=2.0, mode="nearest-exact").bfloat16()
        # Timesteps and the sampler, in float64.
        angle = torch.exp(torch.arange(8, dtype=torch.float64) / 8 * -2.0) * states.double()[:, :8]
        torch.cat([angle.cos(), angle.sin()], dim=-1).float()
        (states.double() - 0.5 * states.double()).bfloat16()
        # Pixels.
        ((states.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).contiguous()
        states.isnan().any()
        # Numbers of tokens and their signs.
        number = torch.arange(256)
        number = ((number ^ (number >> 16)) * 3 & 255) % 64 + number // 64
        torch.where(number >= 8, number.float(), 1.0 - 2.0 * number.float()).sign()
        number.sum()
