"""The settings of this family: those of every run, the walk, and what is looked back at. No torch."""

from __future__ import annotations

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
        pose: Moves such as "w-8,a-8", or a trajectory file that ends in ".json".
        pad_pose: What the camera does when the video goes on after its path; `None` refuses that.
        image: The picture to walk into: a file, or the name of one that ships with the package; `None` starts
            from the prompt alone.
    """

    pose: str
    pad_pose: Literal["hold"] | None = None
    image: str | None = None


class WalkSamplerConfig(SamplerConfig):
    """Sampling, and the context of a chunk.

    Attributes:
        context_noise: Conditioning timestep of frames of the history.
        window: Latent frames looked back at, the chunk's own included; `None` means the whole history.
        context: How the history's keys and values come about. "append": all frames in reach pass through the
            model before every chunk, and those of new frames are added. "rebuild": as append, but they
            replace the old ones. "incremental": the finished chunk alone passes, reading the history.
        recall: Of the frames in the window, those that are chosen by what the camera will see.
    """

    context_noise: float = Field(0.0, ge=0, le=1000)
    window: int | None = Field(None, gt=0)
    context: Context = "append"
    recall: int = Field(4, ge=0)


class WalkModelConfig(ModelConfig):
    """Where the weights are, and the latents that they make.

    Attributes:
        transformer: Its folder among those of the weights.
        latent_channels: Of a latent frame.
        spatial_factor: Pixels to a side of a latent.
    """

    transformer: str = "transformer"
    latent_channels: int = Field(48, gt=0)
    spatial_factor: int = Field(16, gt=0)


class HyWorldPlayConfig(RunConfig):
    """One walk, whole. `video.frames` may be left out: then the pose gives it."""

    model: WalkModelConfig
    sampler: WalkSamplerConfig
    walk: WalkConfig

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
