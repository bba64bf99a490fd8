"""What this family sets: as every run, another transformer, and how far a block looks back. No torch."""

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
        window: Attention window in latent frames, including the current chunk; `None`: no window.
        sink: Number of initial latent frames always kept (attention sink).
        position_span: Keeps the temporal positions of the frames in view below this: those after the sink end
            at `position_span - 1`. Equal to the window, each frame has its rank in view as position. `None`:
            absolute positions.
        first_chunk_steps: Denoising timesteps of the first chunk, if they differ from `steps`.
        recache: What happens to the cache when the prompt changes. "keep_sink": the newest frames are
            recomputed under the new prompt and read the sink; "renew_sink": all frames of the window are
            recomputed, and the first of them become the sink.
        image_frames: Latent frames of an input image, more than 1 for a repeated one; `None` if the model
            takes none.
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
        checkpoint: A `.pt` or `.safetensors` file that replaces the transformer in `weights`, with published
            or diffusers tensor names.
        weights_key: Which weights of a published `.pt` to use: "ema", "raw", or "auto", EMA if present.
        lora: LoRA adapters, merged in this order.
        trained_frames: Latent frames of the training videos; `None` if unknown.
    """

    checkpoint: str | None = None
    weights_key: Literal["auto", "ema", "raw"] = "auto"
    lora: Annotated[tuple[LoraConfig, ...], Field(strict=False)] = ()
    trained_frames: int | None = Field(TRAINED_FRAMES, gt=0)


class SelfForcingConfig(RunConfig):
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
