"""What both training scripts share: processes, a schedule that follows the clock, averaged weights, progress
lines.

Runs are bounded by time, not by steps: the learning rate and the curriculum follow `progress`, the share of
the time budget that is used up. One process trains on one GPU or on the CPU; under `torchrun` the gradients
and the progress are averaged over the processes, so that all of them take the same steps and stop together.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Workers:
    """This process among the processes of a run."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def start(cls) -> Workers:
        """Join the `torchrun` group if there is one; take the GPU of this rank, else the CPU."""
        rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        has_gpu = torch.cuda.is_available()
        device = torch.device("cuda", rank) if has_gpu else torch.device("cpu")
        if has_gpu:
            torch.cuda.set_device(device)
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        if count > 1:
            dist.init_process_group("nccl" if has_gpu else "gloo")
        return cls(rank, count, device)

    def log(self, text: str) -> None:
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)

    def broadcast(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the weights of the first."""
        if self.count > 1:
            for module in modules:
                for tensor in [*module.parameters(), *module.buffers()]:
                    dist.broadcast(tensor.data, 0)

    def average_gradients(self, parameters: list[nn.Parameter], progress: float) -> float:
        """Average the gradients in place and return the averaged progress."""
        if self.count == 1:
            return progress
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat(
            [g.flatten().float() for g in gradients] + [torch.tensor([progress], device=self.device)]
        )
        dist.all_reduce(flat, op=dist.ReduceOp.SUM)
        flat /= self.count
        sizes = [g.numel() for g in gradients]
        for gradient, part in zip(gradients, flat[:-1].split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))
        return float(flat[-1])


class Clock:
    """The time budget of a run; `progress` goes from 0 to 1 and a run ends when it reaches 1."""

    def __init__(self, minutes: float) -> None:
        self.budget_seconds = minutes * 60
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def progress(self) -> float:
        return self.seconds / self.budget_seconds


def learning_rate(peak: float, step: int, progress: float, *, warmup_steps: int = 100) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak at progress 1."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * min(1.0, (step + 1) / warmup_steps) * (0.02 + 0.98 * cosine)


class Averaged:
    """Exponential moving average of the weights of some modules, in fp32."""

    def __init__(self, modules: dict[str, nn.Module], decay: float = 0.999) -> None:
        self.modules, self.decay = modules, decay
        self.weights = {name: [p.detach().clone() for p in m.parameters()] for name, m in modules.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, module in self.modules.items():
            torch._foreach_lerp_(self.weights[name], list(module.parameters()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights of the modules and their averages; a second call undoes the first."""
        for name, module in self.modules.items():
            for parameter, average in zip(module.parameters(), self.weights[name], strict=True):
                kept = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(kept)


def autocast(device: torch.device) -> torch.autocast:
    """Matrix products and convolutions in bf16 on a GPU, everything in fp32 on the CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def psnr(reference: Tensor, test: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two tensors in [0, 1]."""
    return float(-10 * torch.log10((reference.float() - test.float()).square().mean()))
