"""What the engine knows of the HY-WorldPlay family; everything else is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qvg_cli.config.options import FamilyOption, parse_window, spaced_steps
from qvg_cli.models.base import Family

if TYPE_CHECKING:
    import torch

    from qvg_cli.models.base import Planner, RunDetails
    from qvg_cli.models.hyworldplay.config import HyWorldPlayConfig
    from qvg_cli.models.hyworldplay.pipeline import HyWorldPlayPipeline
    from qvg_cli.planning.chunks import VideoPlan
    from qvg_cli.planning.sizes import ModelSizes


class HyWorldPlay(Family["HyWorldPlayConfig"]):
    """Wan 2.2 made to walk through a picture, along the path of a camera."""

    name = "hyworldplay"
    options = (
        FamilyOption(
            "--pose",
            "walk.pose",
            "How the camera moves, in latent frames, such as w-8,a-8 (w s a d, and turns up down left "
            "right); or a trajectory file, path.json.",
            metavar="MOVES",
        ),
        FamilyOption(
            "--pad-pose",
            "walk.pad_pose",
            "Let the camera stand still where the video is longer than its pose.",
            metavar="hold",
        ),
        FamilyOption("--image", "walk.image", "The picture to walk into.", "FILE", Path, str),
        FamilyOption(
            "--context",
            "sampler.context",
            "How the history is kept: append, rebuild or incremental.",
            metavar="MODE",
        ),
        FamilyOption(
            "--window",
            "sampler.window",
            "Latent frames that are attended to, the chunk's own included; all is the whole history.",
            metavar="N",
            parse=parse_window,
        ),
        FamilyOption(
            "--steps",
            "sampler.steps",
            "Denoising steps of a chunk, evenly spaced; the model was distilled to 4.",
            metavar="N",
            type=int,
            parse=spaced_steps,
        ),
    )

    @property
    def config_class(self) -> type[HyWorldPlayConfig]:
        from qvg_cli.models.hyworldplay.config import HyWorldPlayConfig

        return HyWorldPlayConfig

    def plan(self, config: HyWorldPlayConfig) -> VideoPlan:
        from qvg_cli.models.hyworldplay.plan import plan_video

        return plan_video(config)

    def planner(self, config: HyWorldPlayConfig) -> Planner:
        from qvg_cli.models.hyworldplay.plan import planner

        return planner(config)

    def open_planner(self, config: HyWorldPlayConfig) -> Planner:
        from qvg_cli.models.hyworldplay.plan import open_planner

        return open_planner(config)

    def sizes(self, config: HyWorldPlayConfig, *, is_gpu: bool) -> ModelSizes:
        from qvg_cli.models.hyworldplay.sizes import model_sizes

        return model_sizes(config, is_gpu=is_gpu)

    def run_details(self, config: HyWorldPlayConfig) -> RunDetails:
        from qvg_cli.models.hyworldplay.details import run_details

        return run_details(config)

    def load(self, config: HyWorldPlayConfig, device: torch.device) -> HyWorldPlayPipeline:
        from qvg_cli.models.hyworldplay.pipeline import HyWorldPlayPipeline, WalkModels

        return HyWorldPlayPipeline(config, WalkModels(config, device))

    def convert_checkpoint(self, source: Path, config: Mapping[str, object], folder: Path) -> None:
        from qvg_cli.models.hyworldplay.model import WalkTransformer
        from qvg_cli.models.wan.checkpoint import convert_checkpoint

        # The published pickle has averaged weights too, which its authors do not run.
        convert_checkpoint(WalkTransformer, source, config, folder, generators=("generator",))
