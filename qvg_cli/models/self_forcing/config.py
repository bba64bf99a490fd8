"""What this family sets: as every run, another transformer, and how far a block looks back. No torch."""

from __future__ import annotations

from pydantic import Field

from qvg_cli.config.schema import ModelConfig, RunConfig, SamplerConfig


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


class CheckpointModelConfig(ModelConfig):
    """Where the weights are and how they are held.

    Attributes:
        checkpoint: A transformer instead of the one in `weights`: a `.pt` or `.safetensors` file, its tensors
            under their published names or diffusers'.
    """

    checkpoint: str | None = None


class SelfForcingConfig(RunConfig):
    """One run, whole."""

    model: CheckpointModelConfig
    sampler: BlockSamplerConfig
