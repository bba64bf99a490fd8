"""Time decoding with the stock VAE and with `vae_gpu.speed_up`: random weights, published size, on a GPU.

    python -m scripts.bench.vae --height 480 --width 832

A chunk is three latent frames. Prints the median milliseconds of a chunk, the allocator's peak and the
distance of both to float32.
"""

from __future__ import annotations

import argparse
import copy
from statistics import median

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from qvg_cli.models.vae import StreamingDecoder
from qvg_cli.models.vae_gpu import speed_up

_WARM_UPS, _ROUNDS = 3, 10


def main() -> None:
    """Time both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--latents", type=int, default=3, help="latent frames of a chunk")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda")
    with device:
        stock = AutoencoderKLWan().to(torch.bfloat16).eval().requires_grad_(False)
    fast = copy.deepcopy(stock)
    speed_up(fast)
    shape = (1, 16, options.latents, options.height // 8, options.width // 8)
    latents = torch.randn(shape, device=device)
    exact = _decoded(copy.deepcopy(stock).float(), latents[..., :24, :32], 2)
    for name, vae in (("stock", stock), ("fast", fast)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = _time(vae, latents)
        peak = torch.cuda.max_memory_allocated() - before
        rounded = _decoded(vae, latents[..., :24, :32], 2)
        error = ((rounded.float() - exact).norm() / exact.norm()).item()
        print(
            f"{name}: {seconds * 1000:.1f} ms a chunk, {peak / 2**20:.0f} MiB beside the weights, "
            f"relative distance to float32 {error:.2e}"
        )


def _decoded(vae: AutoencoderKLWan, latents: Tensor, rounds: int) -> Tensor:
    decoder = StreamingDecoder(vae)
    return torch.cat([decoder.decode_float(latents) for _ in range(rounds)], dim=2)


def _time(vae: AutoencoderKLWan, latents: Tensor) -> float:
    """Median seconds of a chunk, by device events."""
    decoder = StreamingDecoder(vae)
    for _ in range(_WARM_UPS):
        decoder.decode_float(latents)
    times = []
    for _ in range(_ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        decoder.decode_float(latents)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return median(times)


if __name__ == "__main__":
    main()
