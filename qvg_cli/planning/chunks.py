"""What each chunk of a video makes, reads and keeps, in absolute latent-frame ids. Integers only, no torch.

A plan is made before a byte of weights is read. The same object drives the run, the progress bar, the
accounting and the tests, so everything that can be wrong with a request is found here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qvg_cli.errors import UsageError

Frames = tuple[int, ...]
"""Absolute ids of latent frames."""
PIXEL_FRAMES = 4
"""Of every latent frame but the first, which gives one."""


@dataclass(frozen=True)
class ChunkPlan:
    """One turn of the rollout.

    Attributes:
        index: Position in the plan, from 0.
        makes: Frames that this chunk generates; empty for a chunk that only reads given frames.
        given: Frames that are there already and are only shown: they do not pass through the model here.
        prefill: Given or finished frames that are recalled before denoising. They pass through the model if
            some of them are committed.
        reads: Cached frames attended to while denoising, oldest first, without the chunk's own.
        prefill_commits: Frames of the prefill whose keys and values stay in the cache, by the blocks that
            they are stored in.
        commits: Frames of `makes` whose keys and values stay in the cache after the cache-update pass.
        evicts: Frames that leave the cache before this chunk begins. They may be committed again.
        positions: Time position of each frame in `view`; `None` stands every frame at its own number.
        is_first_made: Whether it makes the first frames of the video, whose steps may be others.
    """

    index: int
    makes: Frames
    prefill: Frames = ()
    reads: Frames = ()
    prefill_commits: tuple[Frames, ...] = ()
    commits: Frames = ()
    evicts: Frames = ()
    given: Frames = ()
    positions: tuple[int, ...] | None = None
    is_first_made: bool = False

    @property
    def frames(self) -> Frames:
        """Frames that this chunk handles, given, finished or made."""
        return self.prefill + self.given + self.makes

    @property
    def view(self) -> Frames:
        """Frames that the model sees in this chunk: those that it reads, then those that pass through it."""
        return (*self.reads, *(frame for frame in self.prefill + self.makes if frame not in self.reads))

    @property
    def kept(self) -> Frames:
        """Frames that this chunk leaves in the cache, in the order in which they are stored."""
        return (*(frame for block in self.prefill_commits for frame in block), *self.commits)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The shape of a video's frames: latents `(C, h, w)`, and decoded frames in pixels.

    Attributes:
        tokens_per_frame: Attention tokens of one latent frame.
    """

    tokens_per_frame: int
    latent_shape: tuple[int, int, int]
    height: int
    width: int

    def first_pixel_frame(self, chunk: ChunkPlan) -> int:
        """The first frame of the decoded video that `chunk` adds."""
        added = chunk.makes or chunk.given or chunk.prefill
        return pixel_frames(min(added))


@dataclass(frozen=True, kw_only=True)
class VideoPlan(Geometry):
    """A whole video: its chunks in order, and notes of what does not come true as it was asked for."""

    chunks: tuple[ChunkPlan, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        """Latent frames of the video, given and made."""
        return 1 + max((max(chunk.frames) for chunk in self.chunks), default=-1)

    @property
    def num_pixel_frames(self) -> int:
        return pixel_frames(self.num_frames)


def pixel_frames(num_frames: int) -> int:
    """Pixel frames that `num_frames` latent frames decode to: the first gives one, each other a group."""
    return 1 + PIXEL_FRAMES * (num_frames - 1) if num_frames else 0


def length_text(num_frames: int) -> str:
    """A length in latent frames for a message, and what it is in pixel frames."""
    return f"{num_frames} latent frames ({pixel_frames(num_frames)} pixel frames)"


def prompt_begins(plan: VideoPlan, frames: Sequence[int]) -> list[int]:
    """Indices of the chunks that begin with the pixel `frames` at which prompts change, in their order.

    A `UsageError` names the nearest frames that fit.
    """
    begins: dict[int, int] = {}
    end = 0
    for chunk in plan.chunks:
        # A chunk that adds no frame belongs to the next one, and the first has the video's first prompt.
        if chunk.index:
            begins.setdefault(pixel_frames(end), chunk.index)
        end = max(end, max(chunk.frames) + 1)
    possible = list(begins)
    for last, frame in zip((0, *frames), frames, strict=False):
        if frame not in possible:
            raise UsageError(f"the prompt cannot change at frame {frame}: {_nearest(frame, possible, plan)}")
        if frame <= last:
            raise UsageError(f"the prompt changes at frame {frame} after it has changed at frame {last}")
    return [begins[frame] for frame in frames]


def _nearest(frame: int, possible: Sequence[int], plan: VideoPlan) -> str:
    if not possible:
        return "the video is one chunk"
    below = [str(other) for other in possible if other < frame][-1:]
    above = [str(other) for other in possible if other > frame][:1]
    where = "the video has ended" if frame >= plan.num_pixel_frames else "no chunk starts there"
    return f"{where}; nearest: {', '.join(below + above)}"
