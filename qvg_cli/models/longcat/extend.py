"""How LongCat-Video goes on from a given video: segment by segment, from the newest frames. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from qvg_cli.errors import UsageError
from qvg_cli.models.base import Extension
from qvg_cli.models.longcat.config import LongCatConfig
from qvg_cli.models.longcat.plan import fit_size, is_480p
from qvg_cli.planning.chunks import pixel_frames


@dataclass(frozen=True)
class LongCatExtension(Extension):
    """Segments of a fixed number of frames, from a fixed number of frames."""

    config: LongCatConfig

    def default_frames(self, given: int) -> int:
        return self.config.sampler.frames_per_chunk

    def frames_of_segments(self, count: int) -> int:
        source = self.config.source
        start = self.config.sampler.window if source is None or source.image is not None else source.frames
        return start + count * self.config.sampler.frames_per_chunk

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        # The trained size of the clip's shape; a size of another class is left as it is configured.
        video = self.config.video
        return fit_size(height, width) if is_480p(video.height, video.width) else (video.height, video.width)

    def clip_frames(self, num_frames: int) -> int:
        count = self.config.sampler.condition_frames
        needed = pixel_frames(count)
        if num_frames < needed:
            fps = self.config.video.fps
            raise UsageError(
                f"the clip has {num_frames} frames at {fps} fps; this model continues from {needed} "
                f"({needed / fps:.2f} s, {count} latent frames)",
                hint="use a longer clip; a larger sampler.frames_per_chunk needs fewer frames",
            )
        return count
