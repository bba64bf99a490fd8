"""The settings of this family: those of every run, the walk, and what is looked back at. No torch."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from qvg_cli.config.schema import Config, ModelConfig, RunConfig, SamplerConfig
from qvg_cli.models.hyworldplay.memory import CHUNK_FRAMES
from qvg_cli.models.hyworldplay.trajectory import camera_path

Context = Literal["append", "rebuild", "incremental"]


class WalkConfig(Config):
    """How the camera goes through which picture.

    Attributes:
        pose: Camera path such as "w-8,a-8", or a trajectory file that ends in ".json".
        pad_pose: "hold" holds the last pose when the video is longer than the path; `None` refuses that.
        image: Input image: a file, or the name of one that ships with the package; `None` starts
            from the prompt alone.
    """

    pose: str
    pad_pose: Literal["hold"] | None = None
    image: str | None = None


class WalkSamplerConfig(SamplerConfig):
    """Sampling, and the context of a chunk.

    Attributes:
        context_noise: Conditioning timestep of context frames.
        window: Attention window in latent frames, including the current chunk; `None`: no window.
        context: KV-cache update mode. "append": before each chunk all frames in the window pass through the
            model, and keys and values of new frames are added. "rebuild": the same, but all are replaced.
            "incremental": only the finished chunk passes and reads the cache.
        recall: Number of frames in the window that are recalled because they saw what the camera will see.
    """

    context_noise: float = Field(0.0, ge=0, le=1000)
    window: int | None = Field(None, gt=0)
    context: Context = "append"
    recall: int = Field(4, ge=0)


class WalkModelConfig(ModelConfig):
    """Where the weights and in them the transformer are, and the latents: channels, pixels to a side."""

    transformer: str = "transformer"
    latent_channels: int = Field(48, gt=0)
    spatial_factor: int = Field(16, gt=0)


class HyWorldPlayConfig(RunConfig):
    """One walk, whole. `video.frames` may be left out: then the pose gives it."""

    model: WalkModelConfig
    sampler: WalkSamplerConfig
    walk: WalkConfig

    @property
    def uses_vae(self) -> bool:
        return super().uses_vae or self.walk.image is not None

    @model_validator(mode="before")
    @classmethod
    def _take_length_from_pose(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        video, walk = values.get("video"), values.get("walk")
        if not (
            isinstance(video, Mapping) and isinstance(walk, Mapping) and isinstance(walk.get("pose"), str)
        ):
            return values
        if video.get("frames") is not None:
            return values
        poses = len(camera_path(walk["pose"]))
        frames = poses + -poses % CHUNK_FRAMES if walk.get("pad_pose") else poses - poses % CHUNK_FRAMES
        return {**values, "video": {**video, "frames": max(frames, CHUNK_FRAMES)}}
