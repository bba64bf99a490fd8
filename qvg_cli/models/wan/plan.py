"""What the plans of all Wan models check alike: the shape of frames, and blocks that are never packed."""

from __future__ import annotations

from qvg_cli.config.schema import CacheConfig, VideoConfig
from qvg_cli.errors import UsageError
from qvg_cli.planning.chunks import Geometry

_PATCH_SIZE = 2


def wan_geometry(video: VideoConfig, *, channels: int = 16, spatial_factor: int = 8) -> Geometry:
    """The shape of the frames of `video`, by the VAE of Wan 2.1 or another; `UsageError` for other sizes.

    Args:
        spatial_factor: Pixels to a side of a latent.
    """
    multiple = spatial_factor * _PATCH_SIZE
    for name, value in (("height", video.height), ("width", video.width)):
        if value % multiple:
            below = value // multiple * multiple
            near = f"{below}, {below + multiple}" if below else str(multiple)
            raise UsageError(f"{name} {value} is not a multiple of {multiple}; nearest: {near}")
    return Geometry(
        tokens_per_frame=(video.height // multiple) * (video.width // multiple),
        latent_shape=(channels, video.height // spatial_factor, video.width // spatial_factor),
        height=video.height,
        width=video.width,
    )


def refuse_unpacked(cache: CacheConfig, most_tokens: int, what: str, hint: str) -> None:
    """Refuse, by a `UsageError`, to leave a history of `most_tokens` unpacked that lives for one chunk."""
    limits = {"keep_recent_chunks": 0, "keep_sink": False, "span_tokens": most_tokens}
    for name, limit in limits.items():
        value = getattr(cache, name)
        if value > limit:
            raise UsageError(
                f"cache.{name}={value} would leave {what} unquantized; largest: {limit}", hint=hint
            )
