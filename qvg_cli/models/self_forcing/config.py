"""What this family sets: as every run, another transformer, and how far a block looks back. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qvg_cli.config.schema import LoraConfig, ModelConfig, RunConfig, SamplerConfig

TRAINED_FRAMES = 21
"""Latent frames of the videos that Self-Forcing was trained to make."""


class BlockSamplerConfig(SamplerConfig):
    """Sampling, and what a block attends to.

    Attributes:
        context_noise: Conditioning timestep of the cache-update pass.
        independent_first_frame: Whether the first chunk is a single frame.
        window: Latent frames attended to, the chunk's own included; `None` means the whole history.
        sink: First latent frames that a window never drops.
        position_span: Time positions that the frames in view are kept within: those after the sink end at
            `position_span - 1`. Equal to the window, every frame stands at its rank in view. `None` stands
            every frame at its own number.
        first_chunk_steps: Steps of the first chunk that is made, where they are others than `steps`.
        recache: What happens to the cache when the prompt changes. "keep_sink": the newest frames pass
            through the model again under the new prompt and read the sink; "renew_sink": as many frames as
            the window has pass again, and the first of them become the sink.
        image_frames: Latent frames that a start picture stands for, 1 for the picture itself, more for the
            picture repeated; `None` where the model was not made for one.
    """

    context_noise: float = Field(0.0, ge=0, le=1000)
    independent_first_frame: bool = False
    window: int | None = Field(None, gt=0)
    sink: int = Field(0, ge=0)
    position_span: int | None = Field(None, gt=0)
    first_chunk_steps: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] | None = None
    recache: Literal["off", "keep_sink", "renew_sink"] = "off"
    image_frames: int | None = Field(None, gt=0)


class CheckpointModelConfig(ModelConfig):
    """Where the weights are and how they are held.

    Attributes:
        checkpoint: A transformer instead of the one in `weights`: a `.pt` or `.safetensors` file, its tensors
            under their published names or diffusers'.
        weights_key: Which weights of a published `.pt` are taken: averaged ("ema"), those of the last step
            ("raw"), or "auto", the averaged ones where there are such.
        lora: Adapters, merged in this order.
        trained_frames: Latent frames of the videos that it was trained to make; `None` where nobody says.
    """

    checkpoint: str | None = None
    weights_key: Literal["auto", "ema", "raw"] = "auto"
    lora: Annotated[tuple[LoraConfig, ...], Field(strict=False)] = ()
    trained_frames: int | None = Field(TRAINED_FRAMES, gt=0)


class SelfForcingConfig(RunConfig):
    """One run, whole."""

    model: CheckpointModelConfig
    sampler: BlockSamplerConfig

    @model_validator(mode="before")
    @classmethod
    def _count_image_frames(cls, values: Any) -> Any:
        """A start picture stands for as many latent frames as the checkpoint was made for."""
        if not isinstance(values, dict):
            return values
        source, sampler = values.get("source"), values.get("sampler")
        if not (isinstance(source, dict) and source.get("image") and isinstance(sampler, dict)):
            return values
        frames = source.get("frames") or sampler.get("image_frames") or 1
        return {**values, "source": {**source, "frames": frames}}

    @property
    def image_frames(self) -> int:
        return self.sampler.image_frames or 1
