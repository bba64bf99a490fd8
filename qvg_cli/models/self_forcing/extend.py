"""How the Self-Forcing family goes on from a given video: in blocks of its end. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from qvg_cli.errors import UsageError
from qvg_cli.models.base import Extension
from qvg_cli.models.self_forcing.config import TRAINED_FRAMES, SelfForcingConfig
from qvg_cli.models.self_forcing.plan import MAX_FRAMES
from qvg_cli.planning.chunks import pixel_frames


@dataclass(frozen=True)
class SelfForcingExtension(Extension):
    """Whole chunks from the end of the clip, within the positions of the model."""

    config: SelfForcingConfig

    @property
    def _trained_frames(self) -> int:
        return self.config.model.trained_frames or TRAINED_FRAMES

    def default_frames(self, given: int) -> int:
        # As many as the model was trained to make, in whole chunks, or what its positions leave.
        size = self.config.sampler.frames_per_chunk
        chunks = max(1, self._trained_frames // size)
        if self.config.sampler.position_span is None:
            chunks = min(chunks, (MAX_FRAMES - given) // size)
        return chunks * size

    def frames_of_segments(self, count: int) -> None:
        return None

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        # Whatever the clip's.
        return self.config.video.height, self.config.video.width

    def clip_frames(self, num_frames: int) -> int:
        # The longest end in whole chunks that leaves the first new chunk inside the trained length.
        size = self.config.sampler.frames_per_chunk
        longest = max(1, self._trained_frames // size - 1) * size
        for count in range(longest, 0, -size):
            if pixel_frames(count) <= num_frames:
                return count
        raise UsageError(
            f"the clip has {num_frames} frames at {self.config.video.fps} fps; this model continues from "
            f"{pixel_frames(size)} or more ({size} latent frames)"
        )
