"""What the engine knows of the Self-Forcing family; everything else is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qvg_cli.config.options import STEPS, FamilyOption, parse_lora, parse_window
from qvg_cli.models.base import Family

if TYPE_CHECKING:
    import torch

    from qvg_cli.models.base import Loras, Planner
    from qvg_cli.models.self_forcing.config import SelfForcingConfig
    from qvg_cli.models.self_forcing.pipeline import SelfForcingPipeline
    from qvg_cli.models.self_forcing.plan import SelfForcingExtension
    from qvg_cli.planning.chunks import ChunkPlan, VideoPlan
    from qvg_cli.planning.sizes import ModelSizes


class SelfForcing(Family["SelfForcingConfig"]):
    """Wan 2.1 made causal: text to video in blocks, with the whole history or a window and a sink."""

    name = "self-forcing"
    options = (
        FamilyOption(
            "--window",
            "sampler.window",
            "Attention window in latent frames, including the current chunk; all: no window [default: all].",
            "N",
            parse=parse_window,
        ),
        FamilyOption(
            "--sink",
            "sampler.sink",
            "Number of initial latent frames always kept (attention sink) [default: 0].",
            "N",
            int,
        ),
        FamilyOption(
            "--position-span",
            "sampler.position_span",
            "Keep the temporal positions of the frames in view below N [default: absolute positions].",
            "N",
            int,
        ),
        STEPS,
        FamilyOption(
            "--image",
            "source.image",
            "Input image, for checkpoints trained for one.",
            "FILE",
            Path,
            str,
            not_in=("extend",),
        ),
        FamilyOption(
            "--lora",
            "model.lora",
            "LoRA to merge into the transformer (repeatable) [default weight: 1].",
            "FILE[:WEIGHT]",
            parse=parse_lora,
            is_repeatable=True,
        ),
    )

    @property
    def config_class(self) -> type[SelfForcingConfig]:
        from qvg_cli.models.self_forcing.config import SelfForcingConfig

        return SelfForcingConfig

    def plan(self, config: SelfForcingConfig) -> VideoPlan:
        from qvg_cli.models.self_forcing.plan import plan_video

        return plan_video(config)

    def open_planner(self, config: SelfForcingConfig) -> Planner:
        from qvg_cli.models.self_forcing.plan import open_planner

        return open_planner(config)

    def sizes(self, config: SelfForcingConfig, *, is_gpu: bool) -> ModelSizes:
        from qvg_cli.models.wan.sizes import WanLayout, wan_sizes
        from qvg_cli.planning.sizes import WAN_21_VAE

        # Wan2.1-T2V-1.3B.
        layout = WanLayout(30, heads=12, head_dim=128, ffn_dim=8960, in_channels=16, out_channels=16)
        sizes = wan_sizes(config, layout, WAN_21_VAE, is_gpu=is_gpu)
        sampler = config.sampler
        return replace(sizes, sink_frames=0 if sampler.window is None else sampler.sink)

    def num_steps(self, config: SelfForcingConfig, chunk: ChunkPlan) -> int:
        sampler = config.sampler
        return len((chunk.is_first_made and sampler.first_chunk_steps) or sampler.steps)

    def extension(self, config: SelfForcingConfig) -> SelfForcingExtension:
        from qvg_cli.models.self_forcing.plan import SelfForcingExtension

        return SelfForcingExtension(config)

    def load(self, config: SelfForcingConfig, device: torch.device) -> SelfForcingPipeline:
        from qvg_cli.models.self_forcing.pipeline import load_pipeline

        return load_pipeline(config, device)

    def convert_checkpoint(
        self, source: Path, config: Mapping[str, object], folder: Path, weights_key: str, lora: Loras = ()
    ) -> None:
        from qvg_cli.models.self_forcing.pipeline import SelfForcingTransformer
        from qvg_cli.models.wan.checkpoint import WEIGHTS_KEYS, convert_checkpoint
        from qvg_cli.models.wan.lora import open_loras

        keys, adapters = WEIGHTS_KEYS[weights_key], open_loras(lora)
        convert_checkpoint(SelfForcingTransformer, source, config, folder, generators=keys, adapters=adapters)
