"""Two processes that make one video: each computes one row of the guidance, with its own model and cache.

The first is the whole program; the second carries out what the first tells it, one call of the session after
the other. Both take the same steps from the same noise with the same two rows, so their latents and their
packed caches are the same, and no cache is ever sent.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from qvg_cli.backends.base import NO_CHANGES, Decoder, Pipeline, Rows, Session
from qvg_cli.backends.channel import Channel, open_store, say_end, wait_for_end
from qvg_cli.config import CacheConfig, RunConfig
from qvg_cli.errors import UsageError
from qvg_cli.launch import Launch
from qvg_cli.plan import ChunkPlan, VideoPlan
from qvg_cli.rollout import SeededNoise

GRACE_SECONDS = 20.0
"""That a second process which has failed leaves to the first: what fails in one mostly fails in both, and the
first then puts away what there is and ends both. After that time torchrun ends the first, too."""


class GuidedPipeline(Pipeline, Protocol):
    """A family whose steps can have two rows."""

    def with_cache(self, cache: CacheConfig) -> GuidedPipeline:
        """See `Pipeline.with_cache`."""
        ...

    def with_rows(self, rows: Rows) -> GuidedPipeline:
        """The same weights, not loaded again, for sessions that let `rows` compute theirs."""
        ...


@dataclass(frozen=True)
class _Start:
    cache: CacheConfig
    plan: VideoPlan
    prompt_embeds: Tensor
    seed: int
    changes: Mapping[int, Tensor]


@dataclass(frozen=True)
class _CleanPass:
    chunk: ChunkPlan
    frames: tuple[int, ...]
    latents: Tensor


@dataclass(frozen=True)
class _Denoise:
    chunk: ChunkPlan
    noise: Tensor


class LeadingPipeline:
    """See `Pipeline`; of the first process.

    Args:
        pipeline: Its rows go through `channel`.
        cache: Of its sessions.
    """

    def __init__(self, pipeline: Pipeline, cache: CacheConfig, channel: Channel) -> None:
        self._pipeline = pipeline
        self._cache = cache
        self._channel = channel

    def with_cache(self, cache: CacheConfig) -> LeadingPipeline:
        """See `Pipeline.with_cache`."""
        return LeadingPipeline(self._pipeline.with_cache(cache), cache, self._channel)

    def read_prompts(self, prompts: Sequence[str]) -> None:
        """See `Pipeline.read_prompts`."""
        self._pipeline.read_prompts(prompts)

    def encode_prompt(self, prompt: str) -> Tensor:
        """See `Pipeline.encode_prompt`."""
        return self._pipeline.encode_prompt(prompt)

    def encode_frames(self, frames: Tensor, seed: int) -> Tensor:
        """See `Pipeline.encode_frames`."""
        return self._pipeline.encode_frames(frames, seed)

    def start(
        self, plan: VideoPlan, prompt_embeds: Tensor, seed: int, changes: Mapping[int, Tensor] = NO_CHANGES
    ) -> _LeadingSession:
        """See `Pipeline.start`; the second process loads its model at the same time."""
        later = {begin: embeds.cpu() for begin, embeds in changes.items()}
        message = _Start(self._cache, plan, prompt_embeds.cpu(), seed, later)
        session = self._channel.share(
            message, lambda: self._pipeline.start(plan, prompt_embeds, seed, changes)
        )
        return _LeadingSession(session, self._channel)

    def noise(self, plan: VideoPlan, seed: int) -> SeededNoise:
        """See `Pipeline.noise`."""
        return self._pipeline.noise(plan, seed)

    def decoder(self) -> Decoder:
        """See `Pipeline.decoder`; pixels are made here only."""
        return self._pipeline.decoder()


class _LeadingSession:
    """See `Session`; every call is made in the second process too."""

    def __init__(self, session: Session, channel: Channel) -> None:
        self.cache = session.cache
        self._session = session
        self._channel = channel

    @property
    def device(self) -> torch.device:
        """See `Session.device`."""
        return self._session.device

    def clean_pass(self, chunk: ChunkPlan, frames: tuple[int, ...], latents: Tensor) -> None:
        """See `Session.clean_pass`."""
        message = _CleanPass(chunk, frames, latents.cpu())
        self._channel.share(message, lambda: self._session.clean_pass(chunk, frames, latents))

    def denoise(
        self, chunk: ChunkPlan, draw_noise: Callable[[], Tensor], on_step: Callable[[], None]
    ) -> Tensor:
        """See `Session.denoise`; the noise is drawn once, as guided families do."""
        noise = draw_noise()
        message = _Denoise(chunk, noise.cpu())
        return self._channel.share(message, lambda: self._session.denoise(chunk, lambda: noise, on_step))


def check_devices(device: torch.device, launch: Launch) -> None:
    """Refuse a device that leaves none for the second process.

    Raises:
        UsageError: It does.
    """
    if launch.num_processes == 1 or device.type != "cuda":
        return
    if device.index != launch.local_rank:
        raise UsageError(
            f"--device {device} and two processes: the first computes on cuda:0, the second on cuda:1",
            hint="leave --device out; CUDA_VISIBLE_DEVICES chooses the GPUs",
        )
    found = torch.cuda.device_count()
    if found < launch.num_local:
        raise UsageError(
            f"two processes need two GPUs; this machine has {found}", hint="start it without torchrun"
        )


def lead(pipeline: GuidedPipeline, config: RunConfig, device: torch.device, launch: Launch) -> Pipeline:
    """The pipeline of the first process, the second one at work beside it until this one ends."""
    channel = Channel(open_store(), launch)
    atexit.register(_part, channel)
    channel.share((config, device.type), lambda: channel.connect(device))
    return LeadingPipeline(pipeline.with_rows(channel), config.cache, channel)


def _part(channel: Channel) -> None:
    """Close the line in order if the second process is listening; else `end_followers_at_exit` ends it."""
    if channel.is_idle:
        channel.share(None, channel.close)


def end_followers_at_exit() -> None:
    """When this process ends, however it does, let the others end, wherever they are."""
    atexit.register(lambda: say_end(open_store()))


def follow(launch: Launch, load_pipeline: Callable[[RunConfig, torch.device], GuidedPipeline]) -> None:
    """Be the second process, until the first has ended.

    Args:
        load_pipeline: Loads the model of a run.
    """
    # The first process hears Ctrl-C, puts away what there is, and ends both.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_leader, args=(open_store(),), daemon=True).start()
    channel = Channel(open_store(), launch)
    config, device_type = channel.receive()
    device = torch.device("cpu")
    if device_type == "cuda":
        device = torch.device("cuda", launch.local_rank)
        # Kernels are started on the current device.
        torch.cuda.set_device(device)
    pipeline = load_pipeline(config, device)
    channel.connect(device)
    serve(pipeline.with_rows(channel), channel, device)


def _end_with_leader(store: Store) -> None:
    wait_for_end(store)
    # The main thread may wait for a row that nobody sends any more, where nothing else ends it.
    os._exit(0)


def serve(pipeline: Pipeline, channel: Channel, device: torch.device) -> None:
    """Carry out what the first process says, until it says that there is no more."""
    while (message := channel.receive()) is not None:
        if isinstance(message, _Start):
            changes = {begin: embeds.to(device) for begin, embeds in message.changes.items()}
            embeds = message.prompt_embeds.to(device)
            session = pipeline.with_cache(message.cache).start(message.plan, embeds, message.seed, changes)
            begun = None
            continue
        if message.chunk != begun:
            begun = message.chunk
            session.cache.begin(message.chunk)
        if isinstance(message, _CleanPass):
            session.clean_pass(message.chunk, message.frames, message.latents.to(device))
        else:
            _denoise(session, message, device)
    channel.close()


def _denoise(session: Session, message: _Denoise, device: torch.device) -> None:
    noise = message.noise.to(device)
    session.denoise(message.chunk, lambda: noise, lambda: None)
