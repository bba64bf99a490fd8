"""From a length in seconds or pixel frames to latent frames that the model can make. No torch."""

import math

from qvg_cli.config.schema import RunConfig
from qvg_cli.errors import UsageError
from qvg_cli.models.registry import family_of
from qvg_cli.planning.chunks import PIXEL_FRAMES, VideoPlan, pixel_frames

_REACH = 64
"""Latent frames around a wish in which a possible length is looked for; chunks are far shorter."""


def with_video(config: RunConfig, **changes: int) -> RunConfig:
    """`config` with another height, width, or length in latent frames."""
    return config.model_copy(update={"video": config.video.model_copy(update=changes)})


def given_pixel_frames(config: RunConfig) -> int:
    """Pixel frames that stand for what is gone on from; a picture that a video begins with is part of it."""
    source = config.source
    return 0 if source is None or source.image is not None else pixel_frames(source.frames)


def fit_length(
    config: RunConfig, *, seconds: float | None = None, frames: int | None = None, segments: int | None = None
) -> RunConfig:
    """`config` with the length that was asked for, if one was."""
    if segments is not None:
        return fit_segments(config, segments)
    if frames is not None:
        return fit_pixel_frames(config, frames)
    return config if seconds is None else fit_seconds(config, seconds)


def fit_segments(config: RunConfig, wanted: int) -> RunConfig:
    """`config` with `wanted` segments after the first clip or the input; `UsageError` if it makes none."""
    if wanted < 1:
        raise UsageError(f"--segments {wanted} is not a valid number of segments", hint="use 1 or more")
    rules = family_of(config).extension(config)
    num_frames = None if rules is None else rules.frames_of_segments(wanted)
    if num_frames is None:
        raise UsageError(f"--segments is not an option of {config.backend}", hint="use --seconds or --frames")
    return with_video(config, frames=num_frames)


def fit_pixel_frames(config: RunConfig, wanted: int) -> RunConfig:
    """`config` of the least possible length of `wanted` pixel frames beside those given, or `UsageError`."""
    if wanted < 1:
        raise UsageError(f"--frames {wanted} is not a valid length", hint="the shortest video has 1 frame")
    family, given = family_of(config), given_pixel_frames(config)
    # The fewest that decode to so many pixel frames, possible or not.
    latent = 1 + -(-(given + wanted - 1) // PIXEL_FRAMES)
    for num_frames in range(latent, latent + _REACH):
        longer = with_video(config, frames=num_frames)
        try:
            return with_video(config, frames=family.plan(longer).num_frames)
        except UsageError:
            continue
    # No length near this one is possible: planning it says why.
    return with_video(config, frames=family.plan(with_video(config, frames=latent)).num_frames)


def rounding_note(
    config: RunConfig, plan: VideoPlan, *, seconds: float | None, frames: int | None
) -> str | None:
    """What to tell where `plan` is longer than was asked for; `None` where it is not."""
    num_new = plan.num_pixel_frames - given_pixel_frames(config)
    lasts = num_new / config.video.fps
    if seconds is not None and abs(lasts - seconds) > 1e-6:
        return f"--seconds {seconds:g} rounded up to {lasts:.2f} s, a whole number of chunks"
    if frames is not None and num_new != frames:
        return f"--frames {frames} rounded up to {num_new} frames, a whole number of chunks"
    return None


def fit_seconds(config: RunConfig, seconds: float) -> RunConfig:
    """`config` of the least possible length of `seconds` beside what is given, or `UsageError`."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(
            f"--seconds {seconds} is not a valid length", hint="use a number above 0, e.g. --seconds 5"
        )
    # A hair less, so that 0.1 s at 30 fps is 3 frames and not 4.
    wanted = max(1, math.ceil(seconds * config.video.fps - 1e-6))
    return fit_pixel_frames(config, wanted)


def shorter_lengths(config: RunConfig, plan: VideoPlan) -> list[RunConfig]:
    """`config` with every possible length below that of its `plan`, the shortest first, without schedule."""
    given = 0 if config.source is None else config.source.frames
    cut = config.model_copy(update={"prompt_changes": ()})
    ends = {max(chunk.frames) + 1 for chunk in plan.chunks if chunk.makes}
    return [with_video(cut, frames=end) for end in sorted(ends) if given < end < plan.num_frames]
