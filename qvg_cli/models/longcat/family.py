"""What the engine knows of the LongCat-Video family; everything else is imported when it is asked for."""

from __future__ import annotations

from dataclasses import replace
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

_DEPTH, _HEADS, _HEAD_DIM = 48, 32, 128
_VALUES = 13_581_071_424
_FLOAT32_VALUES = 610_018_368
"""Values that stay float32: what modulates, and the embedding of time."""
_BLOCK_VALUES, _BLOCK_FLOAT32_VALUES = 282_132_992, 12_607_488
_MATRIX_VALUES = 12_936_806_400
_TOKEN_VALUES = 10.04
"""Values a channel at the fullest moment of a block: 82,200 bytes a token of a base clip, bf16, GPU."""


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
        from qvg_cli.config.resources import weights_folder
        from qvg_cli.planning import sizes

        if config.has_published_weights:
            depth, heads, width, part = _DEPTH, _HEADS, _HEADS * _HEAD_DIM, 1.0
            vae, text_values = sizes.WAN_21_VAE, sizes.TEXT_ENCODER_VALUES
        else:
            folder = weights_folder(config.model.weights)
            layout, part = sizes.read_layout(folder / "dit"), sizes.count_values(folder / "dit") / _VALUES
            depth, heads, width = layout["depth"], layout["num_heads"], layout["hidden_size"]
            vae, text_values = sizes.read_vae(folder / "vae"), sizes.count_values(folder / "text_encoder")
        vae = sizes.with_decoder(replace(vae, keeps_features=False), config.video.decoder, 16)
        size = sizes.element_bytes(config.model.dtype, is_gpu=is_gpu)
        block_bytes = _BLOCK_VALUES * size + _BLOCK_FLOAT32_VALUES * (4 - size)
        return sizes.ModelSizes(
            num_layers=depth,
            heads=heads,
            head_dim=width // heads,
            transformer_bytes=round((_VALUES * size + _FLOAT32_VALUES * (4 - size)) * part),
            block_bytes=round(block_bytes * part * _DEPTH / depth),
            matrix_values=round(_MATRIX_VALUES * part),
            text_encoder_bytes=text_values * size,
            token_bytes=_TOKEN_VALUES * width * size,
            text_bytes=config.num_rows * config.model.text_tokens * width * size,
            latent_bytes=4,
            vae=vae,
            vae_bytes=vae.values * size,
            rows=config.num_rows,
        )

    def num_steps(self, config: LongCatConfig, chunk: ChunkPlan) -> int:
        from qvg_cli.models.longcat.schedule import sampling_of

        return len(sampling_of(config.sampler).schedule(chunk))

    def extension(self, config: LongCatConfig) -> LongCatExtension:
        from qvg_cli.models.longcat.plan import LongCatExtension

        return LongCatExtension(config)

    def load(self, config: LongCatConfig, device: torch.device) -> LongCatPipeline:
        from qvg_cli.models.longcat.pipeline import load_pipeline

        return load_pipeline(config, device)
