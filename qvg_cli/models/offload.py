"""Which weights are on the device, where its memory does not hold them all: the `memory` section of a run.

Results do not depend on it, but for weights stored in fp8, which are rounded once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from qvg_cli.config.schema import MemoryConfig
from qvg_cli.errors import UsageError

STORAGE_DTYPE = torch.float8_e4m3fn
_HOST = torch.device("cpu")


class Offloadable(Protocol):
    """What can wait in CPU memory while others work."""

    def offload(self) -> None:
        """Free the device's memory."""

    def onload(self) -> None:
        """Come back to the device."""


class OffloadedModule(Offloadable):
    """A module that can leave the device at no cost: its weights never change, so one copy of them is enough.

    They are where they are until the first call.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._device = device
        self._tensors = [*module.parameters(), *module.buffers()]
        # Of the kind that a GPU reads at full speed.
        pins = device.type == "cuda"
        self._copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pins).copy_(tensor.data)
            for tensor in self._tensors
        ]

    def offload(self) -> None:
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            tensor.data = copy

    def onload(self) -> None:
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            tensor.data = copy.to(self._device, non_blocking=True)


class Offload:
    """Keeps the transformer and the VAE where `memory` says; a CPU has no other place, by a `UsageError`."""

    def __init__(self, memory: MemoryConfig, device: torch.device) -> None:
        for name in ("transformer", "vae"):
            value = getattr(memory, name)
            if device.type == "cpu" and value != "none":
                raise UsageError(
                    f"memory.{name}={value} needs a GPU: on a CPU there is no other memory to offload to",
                    hint=f"omit memory.{name}, or use --device cuda",
                )
        self.memory = memory
        self.device = device
        self._away_for_pixels: list[Offloadable] = []
        self._here_for_pixels: list[Offloadable] = []

    @property
    def is_fp8(self) -> bool:
        """Whether the matrices of the transformer's blocks are stored in fp8."""
        return self.memory.weights == "fp8"

    @property
    def load_device(self) -> torch.device:
        return _HOST if self.is_fp8 or self.memory.transformer == "group" else self.device

    @property
    def vae_load_device(self) -> torch.device:
        return self.device if self.memory.vae == "none" else _HOST

    @property
    def is_fixed(self) -> bool:
        """Whether the transformer's weights stay on a GPU, as they are, for good."""
        is_moved = self.memory.transformer != "none" or self.memory.weights_sharded or self.is_fp8
        return self.device.type == "cuda" and not is_moved

    def shard(self, model: nn.Module) -> None:
        """Divide the blocks of a transformer without storage among the processes, if `memory` says so."""
        if not self.memory.weights_sharded:
            return
        # It is a second's import.
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        blocks: Any = model.blocks
        others = set(model.parameters()) - set(blocks.parameters())
        for block in blocks:
            fully_shard(block, mesh=mesh)
        # The parts beside the blocks are small, and some are called alone.
        fully_shard(model, mesh=mesh, ignored_params=others)

    @property
    def is_resident(self) -> bool:
        """Whether transformer and VAE stay on a GPU side by side."""
        return self.device.type == "cuda" and self.memory.transformer == self.memory.vae == "none"

    def place_transformer(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Bring a transformer that was just read to its place; it names parts that stay on the device."""
        if self.is_fp8:
            blocks: Any = model.blocks
            for block in blocks:
                # What the timestep modulates with is small and decides much; so do the norms.
                apply_layerwise_casting(
                    block, STORAGE_DTYPE, dtype, ("norm", "adaLN_modulation"), non_blocking=True
                )
        if self.memory.transformer == "group":
            self._stream_blocks(model)
            return
        model.to(self.device)
        if self.memory.transformer == "model":
            self._away_for_pixels.append(OffloadedModule(model, self.device))

    def _stream_blocks(self, model: nn.Module) -> None:
        """Keep the blocks in CPU memory; each comes to the device while the one before it works."""
        names: Any = model.stays_on_device
        kept = {name: model._modules.pop(name) for name in names}
        is_gpu = self.device.type != "cpu"
        apply_group_offloading(
            model,
            onload_device=self.device,
            offload_device=_HOST,
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=is_gpu,
            record_stream=is_gpu,
        )
        for name, module in kept.items():
            model.add_module(name, module.to(self.device) if module is not None else None)

    def place_vae(self, vae: nn.Module) -> None:
        if self.memory.vae == "model":
            self._here_for_pixels.append(OffloadedModule(vae, self.device))
            self._here_for_pixels[-1].offload()

    @contextmanager
    def pixels(self, features: Offloadable | None = None) -> Iterator[None]:
        """The VAE at work with a decoder's `features`, and what does not work out of its way."""
        here = [*self._here_for_pixels, *([features] if features and self.memory.vae == "model" else [])]
        for part in self._away_for_pixels:
            part.offload()
        for part in here:
            part.onload()
        try:
            yield
        finally:
            for part in here:
                part.offload()
            for part in self._away_for_pixels:
                part.onload()
