"""How large a model is, as far as planning needs it: counted from its layout, without torch and weights.

Bytes are exact where they are sums over tensors. What a pass needs beside them is an estimate: it was traced
over the shapes of every intermediate tensor, and is given a token, a pixel.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from qvg_cli.errors import MissingModelError

PASS_PIXELS = 2**18
"""Pixels of the frames that pass through a VAE's last blocks together, but for one frame at least: at 480x832
and more, what four frames hold at once is most of the memory that decoding takes."""
TEXT_ENCODER_VALUES = 5_680_910_336
"""Values of UMT5-XXL's encoder, which all published weights have."""


@dataclass(frozen=True)
class VaeSizes:
    """A VAE that decodes one latent frame after the other.

    Attributes:
        feature_bytes: That its decoder remembers between chunks, a pixel of a frame.
        work_bytes: At the fullest moment of decoding, what it remembers included, a pixel of a frame.
        pass_bytes: More for each further frame that passes through the last blocks together, a pixel.
        keeps_features: Whether they stay between chunks.
        pixel_seconds: That decoding takes on an H200, a pixel of a frame.
    """

    values: int
    feature_bytes: float
    work_bytes: float
    pass_bytes: float
    keeps_features: bool = True
    pixel_seconds: float = 0.0


@dataclass(frozen=True)
class ModelSizes:
    """A model family as one run uses it.

    Attributes:
        transformer_bytes: All weights of the transformer, in the dtype of the run.
        block_bytes: Of these, one block's.
        matrix_values: Weights that `memory.weights=fp8` stores in one byte each, of all blocks.
        text_encoder_bytes: Of the encoder that reads prompts and goes.
        token_bytes: Of a token that passes through the transformer, at the fullest moment.
        text_bytes: Keys and values of prompts that stay beside the transformer.
        latent_bytes: Of one value of latents as they are stored.
        rows: Items that pass in every denoising step: two with guidance.
        sink_frames: First latent frames that a window never drops.
        text_beside_vae: Whether the VAE is loaded before prompts are read.
        streams: Ways in which a layer attends.
        num_processes: That make a video together.
        num_parts: Of these, those that share the tokens and the heads of a call.
    """

    num_layers: int
    heads: int
    head_dim: int
    transformer_bytes: int
    block_bytes: int
    matrix_values: int
    text_encoder_bytes: int
    token_bytes: float
    text_bytes: int
    latent_bytes: int
    vae: VaeSizes
    vae_bytes: int
    rows: int = 1
    sink_frames: int = 0
    text_beside_vae: bool = True
    streams: int = 1
    num_processes: int = 1
    num_parts: int = 1

    def share(self, num_rows: int, num_parts: int, *, is_first: bool) -> Self:
        """What one of several processes has of it: the first alone reads prompts and makes pixels.

        Args:
            num_rows: Groups of processes, of which each computes a row of the guidance.
            num_parts: Processes of a group.
        """
        share = replace(
            self,
            heads=self.heads // num_parts,
            rows=self.rows // num_rows,
            token_bytes=self.token_bytes / num_parts,
            num_processes=num_rows * num_parts,
            num_parts=num_parts,
        )
        if is_first:
            return share
        return replace(share, text_encoder_bytes=0, vae_bytes=0, vae=VaeSizes(0, 0, 0, 0))


WAN_21_VAE = VaeSizes(
    126_892_531, feature_bytes=4729, work_bytes=7346, pass_bytes=1045, pixel_seconds=0.163 / (12 * 480 * 832)
)
"""The VAE of Wan 2.1 in two bytes a value, 96 channels at full size."""
WAN_22_VAE = VaeSizes(
    704_688_668, feature_bytes=3569, work_bytes=7027, pass_bytes=0, pixel_seconds=0.97 / (16 * 704 * 1280)
)
"""The VAE of Wan 2.2 in two bytes a value, 256 channels at half size; timed with diffusers' own layers."""
_TAEHV_VALUES = 9_923_532
"""Values of the larger decoder, for Wan 2.2; its encoder is not loaded."""


def with_decoder(vae: VaeSizes, decoder: str, latent_channels: int, *, is_beside: bool = True) -> VaeSizes:
    """`vae`, or where TAEHV decodes in its place what that needs, and the VAE if it stays, to encode.

    Its blocks remember three frames of 256, 128 and 64 channels at an eighth, a quarter and half of a side;
    around the last convolutions, four times four frames of 64 channels are as large as the video's. For
    Wan 2.2 all sides are half as long. An H200 took 13.4 ms and 811 MiB for 12 frames of 480x832 of Wan 2.1.
    """
    if decoder == "vae":
        return vae
    part = 1 if latent_channels == 16 else 4
    features = 2 * 3 * (256 / 64 + 128 / 16 + 64 / 4) / part
    return replace(
        vae,
        values=_TAEHV_VALUES + (vae.values if is_beside else 0),
        feature_bytes=features,
        work_bytes=features + 4 * 2 * 4 * 64 / part,
        pass_bytes=0,
        pixel_seconds=0.0134 / (12 * 480 * 832) / part,
    )


def read_layout(folder: Path) -> Mapping[str, Any]:
    """The `config.json` of one part of a weights folder; `MissingModelError` if it is missing or broken."""
    path = folder / "config.json"
    try:
        layout = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise MissingModelError(f"cannot read {path}: {error}") from error
    if not isinstance(layout, dict):
        raise MissingModelError(f"{path} does not describe a model")
    return layout


def count_values(folder: Path) -> int:
    """Values of all tensors of a folder, from their files' headers; `MissingModelError` if one is broken."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise MissingModelError(f"{folder} has no safetensors file")
    count = 0
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise MissingModelError(f"cannot read {path}: {error}") from error
    return count


def read_vae(folder: Path) -> VaeSizes:
    """Sizes of another VAE of the same kind; what it needs grows with the channels of its last blocks."""
    layout = read_layout(folder)
    channels = layout.get("decoder_base_dim") or layout.get("base_dim", 96)
    part = channels / (layout.get("patch_size") or 1) ** 2 / 96
    known = WAN_21_VAE
    return VaeSizes(
        count_values(folder),
        feature_bytes=known.feature_bytes * part,
        work_bytes=known.work_bytes * part,
        pass_bytes=known.pass_bytes * part,
        pixel_seconds=known.pixel_seconds * part**2,
    )


def element_bytes(dtype: str, *, is_gpu: bool) -> int:
    """Bytes of one value in the dtype that `model.dtype` means on a device."""
    return {"float32": 4, "bfloat16": 2}.get(dtype, 2 if is_gpu else 4)
