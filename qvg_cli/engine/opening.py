"""What of a video is there before a chunk is made: a clip to show, and latents to go on from."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qvg_cli.config.schema import RunConfig, SourceConfig
from qvg_cli.errors import QvgError
from qvg_cli.models.base import Pipeline
from qvg_cli.models.decoder import Decoder
from qvg_cli.planning.chunks import Geometry, pixel_frames
from qvg_cli.video.clip import fitted_frames
from qvg_cli.video.io import Frames
from qvg_cli.video.picture import fill_frame, open_image


@dataclass(frozen=True)
class Opening:
    """Where a rollout begins: a decoder behind `num_shown` of the given latent frames, `[1, C, F, h, w]`."""

    decoder: Decoder
    context: Tensor | None = None
    num_shown: int = 0


def open_video(
    config: RunConfig,
    geometry: Geometry,
    pipeline: Pipeline,
    device: torch.device,
    show: Callable[[Frames], None],
) -> Opening:
    """Show the clip that a video begins with, and prepare what the model goes on from.

    Args:
        show: Takes the clip's frames, `[n, height, width, 3]` uint8 each.
    """
    decoder = pipeline.decoder()
    source = config.source
    if source is None:
        return Opening(decoder)
    if source.image is not None:
        video = config.video
        pixels = fill_frame(open_image(source.image), height=video.height, width=video.width)
        repeated = np.repeat(pixels[None], pixel_frames(source.frames), axis=0)
        return Opening(decoder, pipeline.encode_frames(_to_tensor(repeated), config.seed))
    latents = None
    if source.latents is not None:
        latents = load_latents(Path(source.latents), source.frames, geometry).to(device)
    if source.clip is None:
        return Opening(decoder, latents)
    frames = _show_clip(source, config, show)
    if latents is None:
        latents = pipeline.encode_frames(frames, config.seed)
    decoder.follow(frames, latents[:, :, : source.clip_frames])
    return Opening(decoder, latents, source.clip_frames)


def _show_clip(source: SourceConfig, config: RunConfig, show: Callable[[Frames], None]) -> Tensor:
    """Show the whole clip; `[1, 3, n, height, width]` in -1 .. 1 of its end."""
    assert source.clip is not None
    video = config.video
    needed = pixel_frames(source.clip_frames)
    newest: deque[Frames] = deque(maxlen=needed)
    num_frames = 0
    for frame in fitted_frames(Path(source.clip), height=video.height, width=video.width, fps=video.fps):
        show(frame[None])
        newest.append(frame)
        num_frames += 1
    if num_frames < needed:
        raise QvgError(f"{source.clip} has {num_frames} frames at {video.fps} fps; {needed} are needed")
    return _to_tensor(np.stack(newest))


def _to_tensor(frames: Frames) -> Tensor:
    """`[n, height, width, 3]` uint8 to `[1, 3, n, height, width]` in -1 .. 1."""
    return torch.tensor(frames, dtype=torch.float32).permute(3, 0, 1, 2)[None] / 127.5 - 1


def read_latents(path: Path) -> Tensor:
    """The latents `[1, C, F, h, w]` in a run's file; `QvgError` if it cannot be read."""
    try:
        return load_file(path)["latents"]
    except (OSError, KeyError, SafetensorError) as error:
        raise QvgError(f"cannot read {path}: {error}") from error


def load_latents(path: Path, num_frames: int, geometry: Geometry) -> Tensor:
    """The first `num_frames` latents `[1, C, F, h, w]` of a run; `QvgError` if of another shape."""
    latents = read_latents(path)
    channels, height, width = geometry.latent_shape
    expected = (1, channels, num_frames, height, width)
    found = tuple(latents.shape)
    if len(found) != 5 or found[2] < num_frames or (*found[:2], num_frames, *found[3:]) != expected:
        raise QvgError(
            f"the latents in {path} have the shape {found}, not {expected}",
            hint="the run has changed since; continue a copy of its video instead",
        )
    return latents[:, :, :num_frames]
