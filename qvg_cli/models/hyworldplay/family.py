"""What the engine knows of the HY-WorldPlay family; everything else is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qvg_cli.config.options import STEPS, FamilyOption, parse_window
from qvg_cli.models.base import Family

if TYPE_CHECKING:
    import torch

    from qvg_cli.models.base import Loras, Planner, RunDetails
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
            "Camera path as MOVE-FRAMES in latent frames, e.g. w-8,left-4 (w s a d: translate; up down left "
            "right: rotate); or a trajectory file, path.json [default: w-8,a-8].",
            "MOVES",
            not_in=("play",),
        ),
        FamilyOption(
            "--pad-pose",
            "walk.pad_pose",
            "Hold the last pose if the video is longer than the path.",
            "hold",
            not_in=("play",),
        ),
        FamilyOption(
            "--image",
            "walk.image",
            "Input image, the first frame [default: park, a built-in picture].",
            "FILE",
            Path,
            str,
        ),
        FamilyOption(
            "--context",
            "sampler.context",
            "KV-cache update mode: append, rebuild or incremental [default: append].",
            "MODE",
            parse=str.lower,
        ),
        FamilyOption(
            "--window",
            "sampler.window",
            "Attention window in latent frames, including the current chunk; all: no window [default: 52].",
            "N",
            parse=parse_window,
        ),
        STEPS,
    )

    @property
    def config_class(self) -> type[HyWorldPlayConfig]:
        from qvg_cli.models.hyworldplay.config import HyWorldPlayConfig

        return HyWorldPlayConfig

    def plan(self, config: HyWorldPlayConfig) -> VideoPlan:
        from qvg_cli.models.hyworldplay.plan import plan_video

        return plan_video(config)

    def planner(self, config: HyWorldPlayConfig) -> Planner:
        from qvg_cli.models.hyworldplay.plan import WalkPlanner, fit_path

        return WalkPlanner(config, fit_path(config)[0])

    def open_planner(self, config: HyWorldPlayConfig) -> Planner:
        from qvg_cli.models.hyworldplay.plan import WalkPlanner

        return WalkPlanner(config)

    def sizes(self, config: HyWorldPlayConfig, *, is_gpu: bool) -> ModelSizes:
        from qvg_cli.models.wan.sizes import WanLayout, wan_sizes
        from qvg_cli.planning.sizes import WAN_22_VAE

        # Wan2.2-TI2V-5B with the camera's parts.
        layout = WanLayout(30, 24, 128, ffn_dim=14336, in_channels=48, out_channels=48, has_camera=True)
        transformer = config.model.transformer
        sizes = wan_sizes(config, layout, WAN_22_VAE, is_gpu=is_gpu, transformer=transformer)
        # Latents are float32, and prompts are encoded before the VAE is read.
        return replace(sizes, latent_bytes=4, text_beside_vae=False)

    def run_details(self, config: HyWorldPlayConfig) -> RunDetails:
        from qvg_cli.models.hyworldplay.details import run_details

        return run_details(config)

    def load(self, config: HyWorldPlayConfig, device: torch.device) -> HyWorldPlayPipeline:
        from qvg_cli.models.hyworldplay.pipeline import HyWorldPlayPipeline, WalkModels

        return HyWorldPlayPipeline(config, WalkModels(config, device))

    def convert_checkpoint(
        self, source: Path, config: Mapping[str, object], folder: Path, weights_key: str, lora: Loras = ()
    ) -> None:
        from qvg_cli.models.hyworldplay.model import WalkTransformer
        from qvg_cli.models.wan.checkpoint import WEIGHTS_KEYS, convert_checkpoint
        from qvg_cli.models.wan.lora import open_loras

        # The published pickle has averaged weights too, which its authors do not run.
        keys = ("generator",) if weights_key == "auto" else WEIGHTS_KEYS[weights_key]
        adapters = open_loras(lora)
        convert_checkpoint(WalkTransformer, source, config, folder, generators=keys, adapters=adapters)
