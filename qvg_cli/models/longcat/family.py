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

        size = sizes.element_bytes(config.model.dtype, is_gpu=is_gpu)
        width, text_rows = _HEADS * _HEAD_DIM, config.num_rows
        vae = sizes.with_decoder(replace(sizes.WAN_21_VAE, keeps_features=False), config.video.decoder, 16)
        published = sizes.ModelSizes(
            num_layers=_DEPTH,
            heads=_HEADS,
            head_dim=_HEAD_DIM,
            transformer_bytes=_VALUES * size + _FLOAT32_VALUES * (4 - size),
            block_bytes=_BLOCK_VALUES * size + _BLOCK_FLOAT32_VALUES * (4 - size),
            matrix_values=_MATRIX_VALUES,
            text_encoder_bytes=sizes.TEXT_ENCODER_VALUES * size,
            token_bytes=_TOKEN_VALUES * width * size,
            text_bytes=text_rows * config.model.text_tokens * width * size,
            latent_bytes=4,
            vae=vae,
            vae_bytes=vae.values * size,
            rows=config.num_rows,
        )
        if config.has_published_weights:
            return published
        folder = weights_folder(config.model.weights)
        layout, values = sizes.read_layout(folder / "dit"), sizes.count_values(folder / "dit")
        own_vae = replace(sizes.read_vae(folder / "vae"), keeps_features=False)
        vae = sizes.with_decoder(own_vae, config.video.decoder, 16)
        part, width = values / _VALUES, layout["hidden_size"]
        return replace(
            published,
            num_layers=layout["depth"],
            heads=layout["num_heads"],
            head_dim=width // layout["num_heads"],
            transformer_bytes=round(published.transformer_bytes * part),
            block_bytes=round(published.block_bytes * part * _DEPTH / layout["depth"]),
            matrix_values=round(published.matrix_values * part),
            text_encoder_bytes=sizes.count_values(folder / "text_encoder") * size,
            token_bytes=_TOKEN_VALUES * width * size,
            text_bytes=text_rows * config.model.text_tokens * width * size,
            vae=vae,
            vae_bytes=vae.values * size,
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
