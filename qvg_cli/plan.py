"""What each chunk of a video makes, reads and keeps, in absolute latent-frame ids. Integers only, no torch.

A plan is made before a byte of weights is read. The same object drives the run, the progress bar, the
accounting and the tests, so everything that can be wrong with a request is found here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChunkPlan:
    """One turn of the rollout.

    Attributes:
        index: Position in the plan, from 0.
        makes: Frames that this chunk generates; empty for a chunk that only reads given frames.
        given: Frames that are there already and are only shown: they do not pass through the model here.
        prefill: Given or finished frames that are recalled before denoising, and that pass through the model
            if some of them are committed.
        reads: Cached frames attended to while denoising, oldest first, without the chunk's own.
        commits: Frames whose keys and values stay in the cache after the clean pass.
        evicts: Frames that leave the cache before this chunk begins.
    """

    index: int
    makes: tuple[int, ...]
    prefill: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    commits: tuple[int, ...] = ()
    evicts: tuple[int, ...] = ()
    given: tuple[int, ...] = ()

    @property
    def frames(self) -> tuple[int, ...]:
        """Frames that this chunk handles, given, finished or made."""
        return self.prefill + self.given + self.makes


@dataclass(frozen=True)
class VideoPlan:
    """A whole video.

    Attributes:
        chunks: In the order in which they run.
        tokens_per_frame: Attention tokens of one latent frame.
        latent_shape: `(C, h, w)` of one latent frame.
        height: Of the decoded frames, in pixels.
        width: Of the decoded frames, in pixels.
        pixel_frames_per_latent: Pixel frames of every latent frame but the first, which gives one.
        notes: What of the request does not come true as it was written, to be shown to the user.
    """

    chunks: tuple[ChunkPlan, ...]
    tokens_per_frame: int
    latent_shape: tuple[int, int, int]
    height: int
    width: int
    pixel_frames_per_latent: int = 4
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        """Latent frames of the video, given and made."""
        return 1 + max((max(chunk.frames) for chunk in self.chunks), default=-1)

    @property
    def num_pixel_frames(self) -> int:
        """Frames of the decoded video."""
        return pixel_frames(self.num_frames, self.pixel_frames_per_latent)


def pixel_frames(num_frames: int, pixel_frames_per_latent: int = 4) -> int:
    """Pixel frames that `num_frames` latent frames decode to: the first gives one, each other a group."""
    return 1 + pixel_frames_per_latent * (num_frames - 1) if num_frames else 0
