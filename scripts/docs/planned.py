"""What `qvg plan` predicts for the published models, as the pages and plots of the documentation use it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from typer.testing import CliRunner

from qvg_cli.main import app

GIB = 2**30
USABLE = 0.92
"""Part of a GPU's memory that a plan counts on (docs/plan.md)."""

LONG = {
    "self-forcing": ["--frames", "4089"],
    "hyworldplay": ["--pose", "w-400"],
    "longcat": ["--segments", "40"],
}
"""A length for each model after which its memory grows no further, or the longest that it has."""


@dataclass(frozen=True)
class Moment:
    """The fullest moment of a chunk."""

    pixel_frames: int
    device_bytes: int


@dataclass(frozen=True)
class Prediction:
    """A long video, chunk by chunk.

    Attributes:
        text_bytes: While the prompt is encoded, before the first chunk.
    """

    fps: int
    width: int
    height: int
    download_gb: float
    text_bytes: int
    moments: list[Moment]

    def longest(self, gpu_gib: int) -> float | None:
        """Seconds of the longest video that fits; infinite where memory stops growing, `None` if none."""
        usable = USABLE * gpu_gib * GIB
        if self.text_bytes > usable or self.moments[0].device_bytes > usable:
            return None
        if self.moments[-1].device_bytes <= usable and self.is_bounded:
            return float("inf")
        return max(m.pixel_frames for m in self.moments if m.device_bytes <= usable) / self.fps

    @property
    def is_bounded(self) -> bool:
        """Whether the second half of the video needs no more than its middle."""
        return self.moments[len(self.moments) // 2].device_bytes == self.moments[-1].device_bytes


def predict(model: str, settings: tuple[str, ...] = (), cache: str = "int2") -> Prediction:
    """Run `qvg plan` for a long video of a published model."""
    sets = [word for setting in settings for word in ("--set", setting)]
    command = ["plan", "--json", "--backend", model, "--cache", cache, *LONG[model], *sets, "--gpu", "80GiB"]
    result = CliRunner().invoke(app, command)
    if result.exit_code:
        raise RuntimeError(f"qvg {' '.join(command)}: {result.output}") from result.exception
    plan = json.loads(result.stdout)
    (found,) = plan["caches"]
    moments = [Moment(at["pixel_frames"], sum(at["bytes"].values())) for at in found["over_time"]]
    return Prediction(
        plan["fps"],
        plan["width"],
        plan["height"],
        plan["download"]["about_bytes"] / 1e9,
        found["text_stage_bytes"],
        moments,
    )
