"""What the engine knows of the LongCat-Video family; everything else is imported when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qvg_cli.config.options import FamilyOption
from qvg_cli.models.base import Family

if TYPE_CHECKING:
    import torch

    from qvg_cli.models.base import Planner
    from qvg_cli.models.longcat.config import LongCatConfig
    from qvg_cli.models.longcat.extend import LongCatExtension
    from qvg_cli.models.longcat.pipeline import LongCatPipeline
    from qvg_cli.planning.chunks import VideoPlan
    from qvg_cli.planning.sizes import ModelSizes


class LongCat(Family["LongCatConfig"]):
    """LongCat-Video: a base clip, and segments that go on from its last frames."""

    name = "longcat"
    options = (
        FamilyOption(
            "--image", "source.image", "The first frame of the video.", "FILE", Path, str, not_in=("extend",)
        ),
        FamilyOption(
            "--steps",
            "sampler.guided_steps",
            "Denoising steps of a clip from text or a picture; a segment takes more.",
            "N",
            int,
            needs=("sampler.mode", "guided"),
        ),
        FamilyOption(
            "--guidance-scale",
            "sampler.guidance",
            "How far a step is led from the negative prompt to the prompt; 1 is not at all.",
            "SCALE",
            float,
            needs=("sampler.mode", "guided"),
        ),
        FamilyOption(
            "--negative-prompt",
            "sampler.negative_prompt",
            "What the guidance leads away from.",
            "TEXT",
            needs=("sampler.mode", "guided"),
        ),
    )

    @property
    def config_class(self) -> type[LongCatConfig]:
        from qvg_cli.models.longcat.config import LongCatConfig

        return LongCatConfig

    def plan(self, config: LongCatConfig) -> VideoPlan:
        from qvg_cli.models.longcat.plan import plan_video

        return plan_video(config)

    def planner(self, config: LongCatConfig) -> Planner:
        from qvg_cli.models.longcat.plan import planner

        return planner(config)

    def open_planner(self, config: LongCatConfig) -> Planner:
        from qvg_cli.models.longcat.plan import open_planner

        return open_planner(config)

    def sizes(self, config: LongCatConfig, *, is_gpu: bool) -> ModelSizes:
        from qvg_cli.models.longcat.sizes import model_sizes

        return model_sizes(config, is_gpu=is_gpu)

    def extension(self, config: LongCatConfig) -> LongCatExtension:
        from qvg_cli.models.longcat.extend import LongCatExtension

        return LongCatExtension(config)

    def load(self, config: LongCatConfig, device: torch.device) -> LongCatPipeline:
        from qvg_cli.models.longcat.pipeline import load_pipeline

        return load_pipeline(config, device)
