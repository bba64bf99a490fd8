"""Everything that decides a run, typed and closed: a key that is not here is refused.

One `RunConfig` is resolved from the backend's YAML, the user's file, `--set` and the options, written to
run.yaml beside the video, and enough to make the same video again. No torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qvg_cli.errors import UsageError
from qvg_kernels.spec import CodecSpec

OLD_OFFLOAD_WORDS = {"resident": "none", "parked": "model", "streamed": "group"}
"""What `memory.transformer` and `memory.vae` were called until 0.1, and are called now."""


class Config(BaseModel):
    """Base of every section: unknown keys are errors, types are not converted, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False
    )


CodecSetting = Annotated[CodecSpec, Field(discriminator="scheme")]


class LayerCodecs(Config):
    """Codecs of the keys and of the values of one layer."""

    k: CodecSetting
    v: CodecSetting


class CacheConfig(Config):
    """How the attention history is kept.

    Attributes:
        preset: Name of the preset the codecs came from.
        k: Codec of the keys.
        v: Codec of the values.
        layers: Of the model's layers that have other codecs, by number from 0.
        keep_recent_chunks: Newest finished chunks that stay unpacked.
        keep_sink: Whether the first chunk stays unpacked.
        span_tokens: Finished chunks wait until together they have this many tokens, then become one span;
            1 packs every chunk as soon as it is finished.
        workspace_mib: For decoded keys and values, whatever the history's length.
        arithmetic: How packed history is multiplied, if its codec is coarse: int8 keys with bf16 or with fp8
            values; "auto" is what the device is fastest with.
    """

    preset: str
    k: CodecSetting
    v: CodecSetting
    # Numbers are texts where they are names in JSON.
    layers: dict[Annotated[int, Field(strict=False)], LayerCodecs] = Field(default_factory=dict)
    keep_recent_chunks: int = Field(0, ge=0)
    keep_sink: bool = False
    span_tokens: int = Field(1, ge=1)
    workspace_mib: int = Field(256, ge=16)
    arithmetic: Literal["auto", "int8", "fp8", "bf16"] = "auto"

    def of_layers(self, num_layers: int) -> list[LayerCodecs]:
        """The codecs of each of a model's layers.

        Raises:
            UsageError: The model has no layer of a number that is given.
        """
        for number in self.layers:
            if not 0 <= number < num_layers:
                raise UsageError(
                    f"cache.layers.{number} is not a layer of this model, which has 0 to {num_layers - 1}"
                )
        others = LayerCodecs(k=self.k, v=self.v)
        return [self.layers.get(number, others) for number in range(num_layers)]


class VideoConfig(Config):
    """What is asked for: the size in pixels and the length in latent frames."""

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    frames: int = Field(gt=0, description="latent frames")
    fps: int = Field(16, gt=0)


class SamplerConfig(Config):
    """How a chunk is denoised: what every family has; each adds its own.

    Attributes:
        steps: Nominal steps on the 1000-step scale, before the shift warps them.
        shift: Of the flow-matching schedule.
        frames_per_chunk: Latent frames made together.
    """

    steps: Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
    shift: float = Field(gt=0)
    frames_per_chunk: int = Field(gt=0)


class ModelConfig(Config):
    """Where the weights are and how they are held.

    Attributes:
        name: What the user sees.
        weights: Folder with transformer, vae, text_encoder and tokenizer; a name without a slash is one that
            ships with the package.
        dtype: Of weights and activations; "auto" is bf16 on a GPU and float32 on a CPU.
        text_tokens: Length that prompts are padded to.
    """

    name: str
    weights: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    text_tokens: int = Field(512, gt=0)


class LoraConfig(Config):
    """A low-rank adapter that is merged into the transformer.

    Attributes:
        file: `.safetensors` or `.pt`, its tensors under the names of PEFT, diffusers or the original code.
        weight: How strong it is; 1 is as it was trained.
        alpha: What it was trained with, where the file does not say; `None` takes the file's, or its rank.
    """

    file: str = Field(min_length=1)
    weight: float = 1.0
    alpha: float | None = Field(None, gt=0)


class SourceConfig(Config):
    """What of a video is there before anything is made.

    Attributes:
        frames: Latent frames that are given, the first of the video.
        clip: Video file that the output begins with; the model sees the end of it.
        clip_frames: Latent frames that stand for the end of `clip`, the first of `frames`.
        latents: File with the given latent frames, from a run; the frames after `clip_frames` are decoded
            from it. None encodes them from the clip or the picture.
        image: Picture that is the first frame; with `frames` above 1 it is repeated for as many latent ones.
    """

    frames: int = Field(1, gt=0)
    clip: str | None = None
    clip_frames: int = Field(0, ge=0)
    latents: str | None = None
    image: str | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> SourceConfig:
        if self.image is not None and (self.clip is not None or self.latents is not None):
            raise ValueError("image stands alone, without clip and latents")
        if self.image is None and self.clip is None and self.latents is None:
            raise ValueError("one of clip, latents and image is needed")
        if (self.clip is None) != (self.clip_frames == 0):
            raise ValueError("clip and clip_frames belong together")
        if self.clip_frames > self.frames or (self.latents is None and 0 < self.clip_frames < self.frames):
            raise ValueError(f"frames={self.frames} and clip_frames={self.clip_frames} do not fit")
        return self


class PromptChange(Config):
    """Another prompt from a pixel frame on; frames count from the first that a latent frame stands for."""

    frame: int = Field(gt=0)
    prompt: str


class MemoryConfig(Config):
    """What is held where; for devices that do not hold everything at once.

    Attributes:
        weights: "model": the transformer in the model's dtype. "fp8": the matrices of its blocks rounded to
            e4m3, half the size, each cast back while it works.
        transformer: How it is offloaded. "none": always on the device. "model": in CPU memory while pixels
            are made. "group": its blocks in CPU memory, each on the device while it works.
        vae: "none": always on the device. "model": with what it remembers in CPU memory while it does not
            work.
        weights_sharded: Whether each of several processes holds only its part of every block of the
            transformer, and takes the others' parts while the block works.
    """

    weights: Literal["model", "fp8"] = "model"
    transformer: Literal["none", "model", "group"] = "none"
    vae: Literal["none", "model"] = "none"
    weights_sharded: bool = False

    @field_validator("transformer", "vae", mode="before")
    @classmethod
    def _take_old_words(cls, value: Any) -> Any:
        return OLD_OFFLOAD_WORDS.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_sharding(self) -> MemoryConfig:
        for name, plain in (("weights", "model"), ("transformer", "none")):
            if self.weights_sharded and getattr(self, name) != plain:
                raise ValueError(f"weights_sharded=true needs {name}={plain}: blocks move in one way only")
        return self


class RunConfig(Config):
    """One run, whole.

    Attributes:
        backend: Name of the file in configs/ that it comes from.
        family: Model family of the backend; None where it has the backend's name.
        prompt: From the first frame on.
        prompt_changes: The prompts after it, in the order of their frames.
        source: What is there already; `None` starts from nothing but the prompt.
    """

    backend: str
    family: str | None = Field(None, exclude_if=lambda family: family is None)
    prompt: str
    prompt_changes: Annotated[tuple[PromptChange, ...], Field(strict=False)] = ()
    source: SourceConfig | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
    model: ModelConfig
    video: VideoConfig
    sampler: SamplerConfig
    cache: CacheConfig
    memory: MemoryConfig = MemoryConfig()

    @model_validator(mode="after")
    def _check_image(self) -> RunConfig:
        source = self.source
        if source is not None and source.image is not None and source.frames != self.image_frames:
            raise ValueError(
                f"source.frames={source.frames}: an image stands for {self.image_frames} latent frames"
            )
        return self

    @property
    def image_frames(self) -> int:
        """Latent frames that a picture which the video begins with stands for."""
        return 1

    @property
    def family_name(self) -> str:
        """Name of the model family."""
        return self.family or self.backend

    @property
    def has_published_weights(self) -> bool:
        """Whether its weights are those of its backend or family, be they on this machine or not."""
        return self.model.weights in (self.backend, self.family_name)

    @property
    def num_rows(self) -> int:
        """Rows of a denoising step: two with guidance."""
        return 1

    @property
    def num_steps(self) -> int:
        """Denoising steps of a chunk, about."""
        return len(self.sampler.steps)
