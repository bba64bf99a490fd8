"""The settings of this family: those of every run, and how a window is sampled. No torch."""

from typing import Literal

from pydantic import Field

from qvg_cli.config.schema import RunConfig, SamplerConfig


class WindowSamplerConfig(SamplerConfig):
    """Sampling of a window whose first frames are given.

    Attributes:
        mode: "guided": `guided_steps` with classifier-free guidance. "distilled": `steps` with the distilled
            adapter, no guidance.
        guided_steps: Denoising steps of the first clip; a segment takes more, below timestep 500.
        guidance: Classifier-free guidance scale; 1 disables guidance.
        negative_prompt: Negative prompt of the guidance.
        window: Latent frames of the first clip, and of a segment with the frames it continues from.
    """

    mode: Literal["guided", "distilled"] = "guided"
    guided_steps: int = Field(50, ge=2)
    guidance: float = Field(4.0, ge=1)
    negative_prompt: str = ""
    window: int = Field(gt=0)

    @property
    def condition_frames(self) -> int:
        """Latent frames that a segment goes on from."""
        return self.window - self.frames_per_chunk

    @property
    def is_guided(self) -> bool:
        """Whether a step has a row of the negative prompt."""
        return self.mode == "guided" and self.guidance > 1


class LongCatConfig(RunConfig):
    sampler: WindowSamplerConfig

    @property
    def uses_vae(self) -> bool:
        # It encodes what every segment goes on from.
        return True

    @property
    def num_rows(self) -> int:
        return 2 if self.sampler.is_guided else 1

    @property
    def num_steps(self) -> int:
        # Those of a segment: 50 become 56.
        return self.sampler.guided_steps + 6 if self.sampler.mode == "guided" else super().num_steps
