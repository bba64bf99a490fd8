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
    from qvg_cli.models.longcat.pipeline import LongCatPipeline
    from qvg_cli.models.longcat.plan import LongCatExtension
    from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
    from qvg_cli.planning.sizes import ModelSizes


class LongCat(Family["LongCatConfig"]):
    """LongCat-Video: a base clip, and segments that go on from its last frames."""

    name = "longcat"
    options = (
        FamilyOption(
            "--image", "source.image", "Input image, the first frame.", "FILE", Path, str, not_in=("extend",)
        ),
        FamilyOption(
            "--steps",
            "sampler.guided_steps",
            "Denoising steps of the first clip; a segment takes more [default: 50].",
            "N",
            int,
            needs=("sampler.mode", "guided"),
        ),
        FamilyOption(
            "--guidance-scale",
            "sampler.guidance",
            "Classifier-free guidance scale; 1 disables guidance [default: 4].",
            "SCALE",
            float,
            needs=("sampler.mode", "guided"),
        ),
        FamilyOption(
            "--negative-prompt",
            "sampler.negative_prompt",
            "Negative prompt for the guidance [default: the list of the authors].",
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

    def open_planner(self, config: LongCatConfig) -> Planner:
        from qvg_cli.models.longcat.plan import SegmentPlanner

        return SegmentPlanner(config)

    def sizes(self, config: LongCatConfig, *, is_gpu: bool) -> ModelSizes:
        from qvg_cli.models.longcat.sizes import model_sizes

        return model_sizes(config, is_gpu=is_gpu)

    def num_steps(self, config: LongCatConfig, chunk: ChunkPlan) -> int:
        from qvg_cli.models.longcat.schedule import sampling_of

        return len(sampling_of(config.sampler).schedule(chunk))

    def extension(self, config: LongCatConfig) -> LongCatExtension:
        from qvg_cli.models.longcat.plan import LongCatExtension

        return LongCatExtension(config)

    def load(self, config: LongCatConfig, device: torch.device) -> LongCatPipeline:
        from qvg_cli.models.longcat.pipeline import load_pipeline

        return load_pipeline(config, device)
