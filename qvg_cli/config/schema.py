"""Everything that decides a run, typed and closed: a key that is not here is refused.

One `RunConfig` is resolved from the backend's YAML, the user's file, `--set` and the options, written to
run.yaml beside the video, and enough to make the same video again. No torch.
"""

from typing import Annotated, Any, Literal, Self

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
    """How the KV cache is stored.

    Attributes:
        preset: Name of the preset that the codecs come from.
        k: Codec of the keys.
        v: Codec of the values.
        layers: Codecs of single layers, by layer number from 0.
        matrices: Matrices that shape the errors of shaped codecs: the name of those that ship with a model,
            or a file; `None` learns them from the video itself.
        keep_recent_chunks: Number of newest finished chunks kept in BF16.
        keep_sink: Whether the first chunk is kept in BF16.
        span_tokens: Finished chunks are quantized together once they have this many tokens; 1 quantizes each
            chunk as soon as it is finished.
        workspace_mib: Size of the workspace for decoded keys and values, in MiB.
        arithmetic: Arithmetic of attention to quantized blocks, for coarse codecs: int8 keys with bf16 or fp8
            values; "auto" is the fastest on the device.
    """

    preset: str
    k: CodecSetting
    v: CodecSetting
    matrices: str | None = None
    # Numbers are texts where they are names in JSON.
    layers: dict[Annotated[int, Field(strict=False)], LayerCodecs] = Field(default_factory=dict)
    keep_recent_chunks: int = Field(0, ge=0)
    keep_sink: bool = False
    span_tokens: int = Field(1, ge=1)
    workspace_mib: int = Field(256, ge=16)
    arithmetic: Literal["auto", "int8", "fp8", "bf16"] = "auto"

    @property
    def is_shaped(self) -> bool:
        """Whether matrices shape the errors of any codec."""
        codecs = [self.k, self.v, *(codec for own in self.layers.values() for codec in (own.k, own.v))]
        return any(codec.is_shaped for codec in codecs)

    def of_layers(self, num_layers: int) -> list[LayerCodecs]:
        """The codecs of each of a model's layers; `UsageError` if it lacks one that is named."""
        for number in self.layers:
            if not 0 <= number < num_layers:
                raise UsageError(
                    f"cache.layers.{number} is not a layer of this model, which has 0 to {num_layers - 1}"
                )
        others = LayerCodecs(k=self.k, v=self.v)
        return [self.layers.get(number, others) for number in range(num_layers)]


class VideoConfig(Config):
    """Size and length of the video.

    Attributes:
        height: Frame height in pixels.
        width: Frame width in pixels.
        frames: Length in latent frames: the first gives one video frame, each other four.
        fps: Frames per second.
        decoder: "vae": the model's own. "taehv": a small decoder, much faster, its pictures slightly worse.
    """

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    frames: int = Field(gt=0, description="latent frames")
    # At 3000 libx264 warns that frames of 1920x1088 are beyond every level of H.264.
    fps: int = Field(16, gt=0, le=1000)
    decoder: Literal["vae", "taehv"] = "vae"


class SamplerConfig(Config):
    """How a chunk is denoised: what every family has; each adds its own.

    Attributes:
        steps: Denoising timesteps on the 1000-step scale, before the shift.
        shift: Shift of the flow-matching schedule.
        frames_per_chunk: Latent frames per chunk.
    """

    steps: Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
    shift: float = Field(gt=0)
    frames_per_chunk: int = Field(gt=0)


class ModelConfig(Config):
    """Where the weights are and how they are held.

    Attributes:
        name: Display name.
        weights: Folder with transformer, vae, text_encoder and tokenizer; a name without a slash means
            downloaded or built-in weights.
        dtype: Precision of weights and activations; "auto" is bf16 on a GPU and float32 on a CPU.
        text_tokens: Length of the padded prompt in tokens.
    """

    name: str
    weights: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    text_tokens: int = Field(512, gt=0)


class LoraConfig(Config):
    """A low-rank adapter that is merged into the transformer.

    Attributes:
        file: `.safetensors` or `.pt`, its tensors under the names of PEFT, diffusers or the original code.
        weight: Strength; 1 is as trained.
        alpha: The alpha of its training if the file does not contain it; `None` takes that of the file, or
            the rank.
    """

    file: str = Field(min_length=1)
    weight: float = 1.0
    alpha: float | None = Field(None, gt=0)


class SourceConfig(Config):
    """The start of a video that is continued.

    Attributes:
        frames: Number of given latent frames, the first of the video.
        clip: Video file that the output starts with; the model sees its last frames.
        clip_frames: How many of `frames` encode the end of `clip`; they come first.
        latents: File with the given latent frames, from a run; the frames after `clip_frames` are decoded
            from it. `None` encodes them from the clip or the image.
        image: Image that becomes the first frame; with `frames` above 1 it is repeated.
    """

    frames: int = Field(1, gt=0)
    clip: str | None = None
    clip_frames: int = Field(0, ge=0)
    latents: str | None = None
    image: str | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.image is not None and (self.clip is not None or self.latents is not None):
            raise ValueError("image cannot be combined with clip or latents")
        if self.image is None and self.clip is None and self.latents is None:
            raise ValueError("one of clip, latents and image is needed")
        if (self.clip is None) != (self.clip_frames == 0):
            raise ValueError("clip and clip_frames must be set together")
        if self.clip_frames > self.frames or (self.latents is None and 0 < self.clip_frames < self.frames):
            raise ValueError(f"frames={self.frames} and clip_frames={self.clip_frames} do not fit")
        return self


class PromptChange(Config):
    """Another prompt from a video frame on.

    Attributes:
        frame: Video frame at which the prompt starts, from the first that a latent frame stands for.
        prompt: The prompt from there on.
    """

    frame: int = Field(gt=0)
    prompt: str


class MemoryConfig(Config):
    """Offloading, for devices that cannot hold everything at once.

    Attributes:
        weights: "model": transformer weights in the dtype of the model. "fp8": the matrices of its blocks in
            FP8 (e4m3), half the size, cast back during use; changes the video.
        transformer: "none": always on the device. "model": offloaded to CPU memory during VAE decoding.
            "group": blocks are copied from CPU memory one by one.
        vae: "none": always on the device. "model": offloaded to CPU memory while the transformer runs.
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
    def _check_sharding(self) -> Self:
        for name, plain in (("weights", "model"), ("transformer", "none")):
            if self.weights_sharded and getattr(self, name) != plain:
                raise ValueError(f"weights_sharded=true needs {name}={plain}: blocks move in one way only")
        return self


class RunConfig(Config):
    """One run, whole.

    Attributes:
        backend: Name of the model, a YAML in configs/.
        family: Model family; `None` if it has the name of the backend.
        prompt: Text prompt.
        prompt_changes: Later prompts, in the order of their frames.
        source: The start of a continued video; `None` starts from the prompt alone.
        seed: Random seed of the noise and the codecs.
        device: "auto", "cpu", "cuda" or "cuda:N".
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
    def _check_image(self) -> Self:
        source = self.source
        if source is not None and source.image is not None and source.frames != self.image_frames:
            raise ValueError(
                f"source.frames={source.frames}: an image counts as {self.image_frames} latent frames"
            )
        return self

    @property
    def image_frames(self) -> int:
        """Latent frames that a picture which the video begins with stands for."""
        return 1

    @property
    def family_name(self) -> str:
        return self.family or self.backend

    @property
    def has_published_weights(self) -> bool:
        """Whether its weights are those of its backend or family, be they on this machine or not."""
        return self.model.weights in (self.backend, self.family_name)

    @property
    def uses_vae(self) -> bool:
        """Whether the VAE decodes, or encodes what the video begins with."""
        return self.video.decoder == "vae" or (self.source is not None and self.source.latents is None)

    @property
    def num_rows(self) -> int:
        """Rows of a denoising step: two with guidance."""
        return 1

    @property
    def num_steps(self) -> int:
        """Denoising steps of a chunk, about."""
        return len(self.sampler.steps)
