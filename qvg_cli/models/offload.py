"""Which weights are on the device, where its memory does not hold them all: the `memory` section of a run.

Results do not depend on it, but for weights stored in fp8, which are rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from diffusers.hooks import apply_group_offloading, apply_layerwise_casting
from torch import Tensor, nn

from qvg_cli.config.schema import MemoryConfig
from qvg_cli.errors import UsageError
from qvg_cli.models.decoder import Decoder
from qvg_cli.planning.chunks import ChunkPlan

STORAGE_DTYPE = torch.float8_e4m3fn
WAN_KEEPS = ("patch_embedding", "condition_embedder", "norm_out", "proj_out")
"""Of a Wan transformer, what stays on the device beside the blocks: small, and at work in every call."""
LONGCAT_KEEPS = ("x_embedder", "y_embedder", "final_layer")
"""Of LongCat's: small, and needed outside a call too."""
_HOST = torch.device("cpu")


class Guest(Protocol):
    """What can wait in CPU memory while others work."""

    def leave(self) -> None:
        """Free the device's memory."""
        ...

    def enter(self) -> None:
        """Come back to the device."""
        ...


class Parked:
    """A module that can leave the device at no cost: its weights never change, so one copy of them is enough.

    Args:
        module: On any device; its weights are where they are until it enters or leaves.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._device = device
        self._tensors = [*module.parameters(), *module.buffers()]
        self._copies = [host_copy(tensor.data, device) for tensor in self._tensors]

    def leave(self) -> None:
        """See `Guest.leave`."""
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            tensor.data = copy

    def enter(self) -> None:
        """See `Guest.enter`."""
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            tensor.data = copy.to(self._device, non_blocking=True)


class Residence:
    """Keeps the transformer and the VAE where `memory` says.

    Args:
        device: Where both compute.

    Raises:
        UsageError: Something is to leave the device, and the device is the CPU.
    """

    def __init__(self, memory: MemoryConfig, device: torch.device) -> None:
        for name in ("transformer", "vae"):
            value = getattr(memory, name)
            if device.type == "cpu" and value != "resident":
                raise UsageError(
                    f"memory.{name}={value} needs a GPU: on a CPU there is no other memory to wait in",
                    hint=f"leave memory.{name} out, or take --device cuda",
                )
        self.memory = memory
        self.device = device
        self._leaves: list[Guest] = []
        self._enters: list[Guest] = []

    @property
    def is_fp8(self) -> bool:
        """Whether the matrices of the transformer's blocks are stored in fp8."""
        return self.memory.weights == "fp8"

    @property
    def load_device(self) -> torch.device:
        """Where the transformer is to be read to."""
        is_elsewhere = self.is_fp8 or self.memory.transformer == "streamed"
        return _HOST if is_elsewhere else self.device

    @property
    def vae_load_device(self) -> torch.device:
        """Where the VAE is to be read to."""
        return self.device if self.memory.vae == "resident" else _HOST

    def place_transformer(self, model: nn.Module, dtype: torch.dtype, keeps: Sequence[str]) -> None:
        """Bring a transformer that was just read to its place.

        Args:
            dtype: That it computes in.
            keeps: Its parts beside `blocks` that stay on the device in any case.
        """
        if self.is_fp8:
            store_fp8(model, dtype)
        if self.memory.transformer == "streamed":
            stream_blocks(model, self.device, keeps)
            return
        model.to(self.device)
        if self.memory.transformer == "parked":
            self._leaves.append(Parked(model, self.device))

    def place_vae(self, vae: nn.Module) -> None:
        """Bring a VAE that was just read to its place."""
        if self.memory.vae == "parked":
            self._enters.append(Parked(vae, self.device))
            self._enters[-1].leave()

    @contextmanager
    def pixels(self, features: Guest | None = None) -> Iterator[None]:
        """The VAE at work, and what does not work out of its way.

        Args:
            features: What a decoder remembers; goes where the VAE goes.
        """
        enters = [*self._enters, *([features] if features and self._enters else [])]
        for guest in self._leaves:
            guest.leave()
        for guest in enters:
            guest.enter()
        try:
            yield
        finally:
            for guest in enters:
                guest.leave()
            for guest in self._leaves:
                guest.enter()


class ResidentDecoder:
    """A decoder that makes room for itself on the device, and gives it back.

    Args:
        features: What of it goes where the VAE goes; see `Residence.pixels`.
    """

    def __init__(self, decoder: Decoder, residence: Residence, features: Guest | None = None) -> None:
        self._decoder = decoder
        self._residence = residence
        self._features = features

    def recall(self, latents: Tensor) -> Tensor:
        """See `Decoder.recall`."""
        with self._residence.pixels(self._features):
            return self._decoder.recall(latents)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Decoder.decode`."""
        with self._residence.pixels(self._features):
            return self._decoder.decode(latents)

    def decode_each(self, latents: Tensor) -> Iterator[Tensor]:
        """See `Decoder.decode_each`; room is made once for all parts."""
        with self._residence.pixels(self._features):
            yield from self._decoder.decode_each(latents)

    def follow(self, frames: Tensor, latents: Tensor) -> None:
        """See `Decoder.follow`."""
        with self._residence.pixels(self._features):
            self._decoder.follow(frames, latents)

    def skip(self, chunks: Sequence[ChunkPlan], latents: Tensor, num_shown: int) -> None:
        """See `Decoder.skip`."""
        with self._residence.pixels(self._features):
            self._decoder.skip(chunks, latents, num_shown)


def store_fp8(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the matrices of the blocks in e4m3, each cast to `dtype` while it works."""
    blocks: Any = model.blocks
    for block in blocks:
        # What the timestep modulates with is small and decides much; so do the norms.
        apply_layerwise_casting(block, STORAGE_DTYPE, dtype, ("norm", "adaLN_modulation"), non_blocking=True)


def stream_blocks(model: nn.Module, device: torch.device, keeps: Sequence[str]) -> None:
    """Keep the blocks in CPU memory; each comes to the device while the one before it works."""
    kept: dict[str, nn.Module | None] = {name: model._modules.pop(name) for name in keeps}
    is_gpu = device.type != "cpu"
    apply_group_offloading(
        model,
        onload_device=device,
        offload_device=_HOST,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=is_gpu,
        record_stream=is_gpu,
    )
    for name, module in kept.items():
        model.add_module(name, module.to(device) if module is not None else None)


def host_copy(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy in CPU memory, of the kind that a GPU reads at full speed."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=device.type == "cuda")
    return copy.copy_(tensor)
