"""The settings of this family: those of every run, and how far back a block looks. No torch."""

from __future__ import annotations

from pydantic import Field

from qvg_cli.config import RunConfig, SamplerConfig


class BlockSamplerConfig(SamplerConfig):
    """Sampling, and what a block attends to.

    Attributes:
        context_noise: Timestep of the clean pass whose keys and values stay.
        independent_first_frame: Whether the first chunk is a single frame.
        window: Latent frames attended to, the chunk's own included; none means the whole history.
        sink: First latent frames that a window never drops.
    """

    context_noise: float = Field(0.0, ge=0, le=1000)
    independent_first_frame: bool = False
    window: int | None = Field(None, gt=0)
    sink: int = Field(0, ge=0)


class SelfForcingConfig(RunConfig):
    """One run, whole."""

    sampler: BlockSamplerConfig
