"""What a model family is: a `Family` to plan with and, once loaded, a `Pipeline` that makes videos. No torch.

Nothing outside a family's package knows how its model is called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Generic, Protocol, TypeVar

from qvg_cli.errors import MissingModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy import float64
    from numpy.typing import NDArray
    from torch import Tensor, device, dtype

    from qvg_cli.cache.kv_cache import KVCache
    from qvg_cli.config.options import FamilyOption
    from qvg_cli.config.schema import LoraConfig, RunConfig
    from qvg_cli.models.decoder import Decoder
    from qvg_cli.models.parallel import Rows, Tokens
    from qvg_cli.planning.cache_forecast import CacheShape
    from qvg_cli.planning.cache_plan import Commit
    from qvg_cli.planning.chunks import ChunkPlan, Frames, Geometry, VideoPlan
    from qvg_cli.planning.sizes import ModelSizes

    Loras = Sequence[LoraConfig]

ConfigT = TypeVar("ConfigT", bound="RunConfig")


@dataclass(frozen=True)
class RunDetails:
    """What a family adds to a run's folder: to run.yaml, and plots by name, each with what draws it.

    It can be pickled, for another process to draw.
    """

    about: Mapping[str, Any] = field(default_factory=dict)
    plots: Mapping[str, Callable[[Path | BinaryIO], None]] = field(default_factory=dict)


class Extension(Protocol):
    """How a family goes on from a given video. No torch."""

    def default_frames(self, given: int) -> int:
        """Latent frames to make where no length is asked for, after `given` ones; 0 if none can follow."""

    def frames_of_segments(self, count: int) -> int | None:
        """Latent frames of a video with `count` segments after its first clip, or after what is given; None
        for a family whose videos have no segments."""

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in which a clip of another size is gone on from."""

    def clip_frames(self, num_frames: int) -> int:
        """Latent frames of a clip's end that the model sees, of so many pixel frames at the run's rate."""


class Family(ABC, Generic[ConfigT]):
    """A model family: how its runs are checked, planned, counted and loaded. Several backends may use one.

    Importing one is quick; a method imports what it needs.

    Attributes:
        name: In the registry, and as `family` in a backend's YAML.
        options: That it adds to the command line.
    """

    name: ClassVar[str]
    options: ClassVar[Sequence[FamilyOption]] = ()

    @property
    @abstractmethod
    def config_class(self) -> type[ConfigT]:
        """What its runs are checked against."""

    @abstractmethod
    def plan(self, config: ConfigT) -> VideoPlan:
        """The plan of a run, without weights; a `UsageError` names the nearest request that would fit."""

    def planner(self, config: ConfigT) -> Planner:
        """What has planned the video of a run, for its denoiser."""
        return self.open_planner(config)

    @abstractmethod
    def open_planner(self, config: ConfigT) -> Planner:
        """What plans a video that has no end yet, chunk by chunk; `UsageError` as for `plan`."""

    @abstractmethod
    def sizes(self, config: ConfigT, *, is_gpu: bool) -> ModelSizes:
        """How large the model of a run is, without weights; `MissingModelError` if unreadable."""

    def num_steps(self, config: ConfigT, chunk: ChunkPlan) -> int:
        """Denoising steps of a chunk that makes frames."""
        return len(config.sampler.steps)

    @property
    def can_extend(self) -> bool:
        """Whether any of its runs goes on from a given video."""
        return type(self).extension is not Family.extension

    def extension(self, config: ConfigT) -> Extension | None:
        """How a run goes on from a given video; None where the family cannot."""
        return None

    def run_details(self, config: ConfigT) -> RunDetails:
        """What a run's folder gets beside what all have."""
        return RunDetails()

    @abstractmethod
    def load(self, config: ConfigT, device: device) -> Pipeline:
        """The model of a run; `MissingModelError` if the weights are not there or not whole."""

    def convert_checkpoint(
        self, source: Path, config: Mapping[str, object], folder: Path, weights_key: str, lora: Loras = ()
    ) -> None:
        """Write the published checkpoint `source`, adapters merged, as safetensors with a config.json.

        Of its weights those named by `weights_key`: "ema", "raw" or "auto", which the authors run. A
        `MissingModelError` names what is wrong with it.
        """
        raise MissingModelError(
            f"a checkpoint of {self.name} is used as it is published", hint="leave convert out of the YAML"
        )


class Planner(Protocol):
    """Cuts one video into chunks, one after the other, from what is known of it so far. No torch."""

    @property
    def geometry(self) -> Geometry:
        """The shape of the video's frames."""

    def next(self, *, pose: str | None = None, is_new_prompt: bool = False) -> tuple[ChunkPlan, ...]:
        """The next chunk of a video that has no end yet, after chunks that only change the cache, if any.

        Args:
            pose: How the camera goes on; a `UsageError` for a family that has none.
            is_new_prompt: Whether another prompt begins with this chunk.
        """

    @property
    def viewmats(self) -> NDArray[float64] | None:
        """`[F, 4, 4]` world to camera along the path so far; `None` for a family without a camera."""
        return None

    def with_path(self, config: Any) -> Any:
        """`config` with the camera's path so far, for a family that has one."""
        return config

    def follow(self, config: Any) -> None:
        """Begin with the path of the video of `config`; `UsageError` if no move can come after it."""
        return None


class Denoiser(Protocol):
    """One video in the making: the model, its prompt, and the cache that it reads and fills.

    `observes_steps`: the cache learns from the calls of `denoise` too.
    """

    cache: KVCache
    observes_steps: bool = True

    @property
    def device(self) -> device:
        """Where the model computes."""

    def set_prompt(self, prompt_embeds: Tensor) -> None:
        """Take `[rows, text_tokens, C]` prompt embeddings for the calls that follow; the history stays."""

    def update_cache(self, chunk: ChunkPlan, frames: Frames, latents: Tensor, commit: Commit) -> None:
        """Pass finished latents `[B, C, F, h, w]` of `frames`, and store keys and values by `commit`."""

    def denoise(
        self, chunk: ChunkPlan, draw_noise: Callable[[], Tensor], on_step: Callable[[], None]
    ) -> Tensor:
        """Latents `[B, C, F, h, w]` of the frames that `chunk` makes; changes nothing in the cache.

        Args:
            draw_noise: Fresh noise `[B, C, F, h, w]` at every call: the starting noise first.
            on_step: Called after every model call.
        """


class Pipeline(Protocol):
    """A loaded model family: weights on the device, ready to start videos."""

    def with_config(self, config: Any) -> Pipeline:
        """The same weights for a video of other settings; `UsageError` if they ask for other weights."""

    def share(self, tokens: Tokens, rows: Rows) -> None:
        """Compute with other processes: some tokens and heads, or rows of the guidance, of every call."""

    @property
    def cache_shape(self) -> CacheShape:
        """Keys and values of one video, of the heads that are computed here."""

    @property
    def latents_dtype(self) -> dtype:
        """Dtype of noise and latents between denoising steps."""

    def read_prompts(self, prompts: Sequence[str]) -> None:
        """Encode prompts that will be asked for, so that the text encoder is loaded once for all of them."""

    def encode_prompt(self, prompt: str) -> Tensor:
        """Prompt embeddings `[rows, text_tokens, C]`; two rows for a family with guidance."""

    def encode_frames(self, frames: Tensor, seed: int) -> Tensor:
        """Latents `[B, C, F, h, w]` of `[B, 3, 4 F - 3, height, width]` pixels in -1 .. 1."""

    def denoiser(self, cache: KVCache, planner: Planner, prompt_embeds: Tensor, seed: int) -> Denoiser:
        """What makes one video, with an empty cache and the family's own planner of it."""

    def decoder(self) -> Decoder:
        """A decoder at the beginning of a video."""
