"""What a model family is: a `Family` to plan with and, once loaded, a `Pipeline` that makes videos. No torch.

Nothing outside a family's package knows how its model is called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from qvg_cli.errors import MissingModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, device

    from qvg_cli.cache.kv_cache import KVCache
    from qvg_cli.config.options import FamilyOption
    from qvg_cli.config.schema import CacheConfig, RunConfig
    from qvg_cli.engine.rollout import SeededNoise
    from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
    from qvg_cli.planning.sizes import ModelSizes

ConfigT = TypeVar("ConfigT", bound="RunConfig")


@dataclass(frozen=True)
class RunDetails:
    """What a family adds to a run's folder.

    Attributes:
        about: What run.yaml says about the run beside its settings.
        files: Name of a file to a function that writes it.
    """

    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


class Extension(Protocol):
    """How a family goes on from a given video. No torch."""

    def default_frames(self, given: int) -> int:
        """Latent frames to make where no length is asked for, after `given` ones; 0 if none can follow."""
        ...

    def frames_of_segments(self, count: int) -> int | None:
        """Latent frames of a video with `count` segments after its first clip, or after what is given; None
        for a family whose videos have no segments."""
        ...

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in which a clip of another size is gone on from."""
        ...

    def clip_frames(self, num_frames: int) -> int:
        """Latent frames of a clip's end that the model sees.

        Args:
            num_frames: Pixel frames of the clip, at the rate of the run.

        Raises:
            UsageError: They are too few.
        """
        ...


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
        """The plan of a run, without weights.

        Raises:
            UsageError: The request does not fit the model; the message names the nearest that does.
        """

    @abstractmethod
    def sizes(self, config: ConfigT, *, is_gpu: bool) -> ModelSizes:
        """How large the model of a run is, without weights.

        Raises:
            MissingModelError: It is in a folder of the user's, and that cannot be read.
        """

    def extension(self, config: ConfigT) -> Extension | None:
        """How a run goes on from a given video; None where the family cannot."""
        return None

    def run_details(self, config: ConfigT) -> RunDetails:
        """What a run's folder gets beside what all have."""
        return RunDetails()

    @abstractmethod
    def load(self, config: ConfigT, device: device) -> Pipeline:
        """The model of a run.

        Raises:
            MissingModelError: The weights are not there or not whole.
        """

    def convert_checkpoint(self, source: Path, config: Mapping[str, object], folder: Path) -> None:
        """Write the published checkpoint `source` to `folder` as safetensors with a config.json.

        Args:
            config: What the model is built from.

        Raises:
            MissingModelError: The file is not a checkpoint of this model; what is wrong is named.
        """
        raise MissingModelError(
            f"a checkpoint of {self.name} is used as it is published", hint="leave convert out of the YAML"
        )


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


NO_CHANGES: Mapping[int, Tensor] = MappingProxyType({})
"""One prompt for the whole video."""


class Rows(Protocol):
    """Who computes the rows of a guided step: this process alone, or two together."""

    def compute(self, predict: Callable[[slice], Tensor], num_rows: int) -> Tensor:
        """Predictions `[num_rows, ...]`; `predict` makes those of some rows."""
        ...


class AllRows:
    """See `Rows`; all of them here, in one model call."""

    def compute(self, predict: Callable[[slice], Tensor], num_rows: int) -> Tensor:
        """See `Rows.compute`."""
        return predict(slice(0, num_rows))


class Decoder(Protocol):
    """From latents to pixels, and to the latents that the model is shown again."""

    def recall(self, latents: Tensor) -> Tensor:
        """What a prefill reads of frames that were made, or given, as `latents`; `[B, C, F, h, w]` both."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels `[B, n, height, width, 3]` uint8, on the CPU, of the next latent frames."""
        ...

    def follow(self, frames: Tensor, latents: Tensor) -> None:
        """Go on after a clip, as if its end had been decoded here.

        Args:
            frames: `[B, 3, 4 F - 3, height, width]` pixels in -1 .. 1.
            latents: `[B, C, F, h, w]` that they were encoded to.
        """
        ...

    def skip(self, plan: VideoPlan, num_chunks: int, latents: Tensor, num_shown: int) -> None:
        """Come to where the first `num_chunks` of a video would have led.

        Args:
            latents: `[B, C, F, h, w]` of their frames.
            num_shown: Of them, the first so many were followed.
        """
        ...


class Pipeline(Protocol):
    """A loaded model family: weights on the device, ready to start videos."""

    def with_cache(self, cache: CacheConfig) -> Pipeline:
        """The same weights, not loaded again, for sessions whose history is kept as `cache` says."""
        ...

    def read_prompts(self, prompts: Sequence[str]) -> None:
        """Read prompts that will be asked for, so that the text encoder is loaded once for all of them."""
        ...

    def encode_prompt(self, prompt: str) -> Tensor:
        """Text states `[rows, text_tokens, C]` of a prompt; two rows for a family with guidance."""
        ...

    def encode_frames(self, frames: Tensor, seed: int) -> Tensor:
        """Latents `[B, C, F, h, w]` of `[B, 3, 4 F - 3, height, width]` pixels in -1 .. 1."""
        ...

    def start(
        self, plan: VideoPlan, prompt_embeds: Tensor, seed: int, changes: Mapping[int, Tensor] = NO_CHANGES
    ) -> Session:
        """A session with an empty cache for the planned video.

        Args:
            changes: Text states of later prompts, by the index of the chunk that each begins with.
        """
        ...

    def noise(self, plan: VideoPlan, seed: int) -> SeededNoise:
        """The noise of the planned video, in the model's dtype and on its device."""
        ...

    def decoder(self) -> Decoder:
        """A decoder at the beginning of a video."""
        ...
