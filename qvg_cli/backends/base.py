"""What every model family offers to the rollout.

A family is a package with `plan.py` (torch-free: `plan_video(config) -> VideoPlan`) and `pipeline.py`
(`load_pipeline(config, device) -> Pipeline`). Nothing outside a family's package knows how its model is
called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, device

    from qvg_cli.cache.kv_cache import KVCache
    from qvg_cli.plan import ChunkPlan, VideoPlan
    from qvg_cli.rollout import SeededNoise
    from qvg_cli.video.vae_stream import StreamingDecoder


class Session(Protocol):
    """One video in the making: a prompt, a cache, and the model that reads and fills it."""

    cache: KVCache

    @property
    def device(self) -> device:
        """Where the model computes."""
        ...

    def clean_pass(self, chunk: ChunkPlan, frames: tuple[int, ...], latents: Tensor) -> None:
        """Compute keys and values of finished `frames`, `[B, C, F, h, w]`, and commit them to the cache."""
        ...

    def denoise(
        self, chunk: ChunkPlan, draw_noise: Callable[[], Tensor], on_step: Callable[[], None]
    ) -> Tensor:
        """Latents `[B, C, F, h, w]` of the frames that `chunk` makes; changes nothing in the cache.

        Args:
            draw_noise: Fresh noise `[B, C, F, h, w]` at every call: the starting noise first.
            on_step: Called after every model call.
        """
        ...


class Pipeline(Protocol):
    """A loaded model family: weights on the device, ready to start videos."""

    def encode_prompt(self, prompt: str) -> Tensor:
        """Text states `[1, text_tokens, C]` of a prompt."""
        ...

    def start(self, plan: VideoPlan, prompt_embeds: Tensor, seed: int) -> Session:
        """A session with an empty cache for the planned video."""
        ...

    def noise(self, plan: VideoPlan, seed: int) -> SeededNoise:
        """The noise of the planned video, in the model's dtype and on its device."""
        ...

    def decoder(self) -> StreamingDecoder:
        """A decoder at the beginning of a video."""
        ...
