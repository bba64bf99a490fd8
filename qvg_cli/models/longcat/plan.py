"""How a LongCat video is cut into a base clip and segments, and which sizes the model makes. No torch.

A clip is one window of latent frames. Each segment takes the newest frames of what is there as its condition
and fills the rest of the window. Keys and values of the condition are made anew for every segment: a deeper
layer's depend on all frames of the window, and the window moves on.

Source: meituan-longcat/LongCat-Video, `run_demo_long_video.py` and `longcat_video/utils/bukcet_config.py`.
"""

from dataclasses import dataclass

from qvg_cli.errors import UsageError
from qvg_cli.models.base import Extension, Planner
from qvg_cli.models.longcat.config import LongCatConfig
from qvg_cli.models.wan.plan import refuse_unpacked, wan_geometry
from qvg_cli.planning.chunks import ChunkPlan, Geometry, VideoPlan, length_text, pixel_frames

MAX_FRAMES = 100_000
"""The model has no longest video. This one takes 7 hours to watch."""
_SIZES_480P = {
    0.26: (320, 1216), 0.31: (352, 1120), 0.38: (384, 1024), 0.43: (416, 960), 0.52: (448, 864),
    0.58: (480, 832), 0.67: (512, 768), 0.74: (544, 736), 0.86: (576, 672), 0.95: (608, 640),
    1.05: (640, 608), 1.17: (672, 576), 1.29: (704, 544), 1.35: (736, 544), 1.50: (768, 512),
    1.67: (800, 480), 1.73: (832, 480), 2.00: (896, 448), 2.31: (960, 416), 2.58: (992, 384),
    2.75: (1056, 384), 3.09: (1088, 352), 3.70: (1184, 320), 3.80: (1216, 320), 3.90: (1248, 320),
    4.00: (1280, 320),
}  # fmt: skip
"""Sizes `(height, width)` of the 480p class by the ratio they are chosen for."""


def fit_size(height: int, width: int) -> tuple[int, int]:
    """The 480p size `(height, width)` whose ratio is nearest to that of a given clip; the first on a tie."""
    ratio = height / width
    return _SIZES_480P[min(_SIZES_480P, key=lambda listed: abs(listed - ratio))]


def plan_video(config: LongCatConfig) -> VideoPlan:
    """Plan a run; a `UsageError` names the nearest size, length, window or cache that fits."""
    geometry = _geometry(config)
    source, context_frames, finished_frames = config.source, 0, 0
    if source is not None:
        context_frames = source.clip_frames if source.image is None else 1
        finished_frames = source.frames
    chunks = plan_chunks(
        config.video.frames,
        window=config.sampler.window,
        condition_frames=config.sampler.condition_frames,
        context_frames=context_frames,
        finished_frames=finished_frames,
    )
    steps = f"distilled: {len(config.sampler.steps)} steps per clip, no guidance"
    note = f"{steps}; sampler.guided_steps, guidance and negative_prompt are ignored"
    notes = (note,) if config.sampler.mode == "distilled" else ()
    return VideoPlan(**vars(geometry), chunks=chunks, notes=notes)


class SegmentPlanner(Planner):
    """Plans a video clip by clip, without an end; a `UsageError` names sizes, windows or caches that fit."""

    def __init__(self, config: LongCatConfig) -> None:
        self._config = config
        self._geometry = _geometry(config)
        self._num_frames = 0
        self._num_chunks = 0

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    def next(self, *, pose: str | None = None, is_new_prompt: bool = False) -> tuple[ChunkPlan, ...]:
        if pose is not None:
            raise UsageError("this model has no camera: pose is not an option of it")
        sampler = self._config.sampler
        num_frames = self._num_frames + sampler.frames_per_chunk if self._num_frames else sampler.window
        video = self._config.video.model_copy(update={"frames": num_frames})
        chunks = plan_video(self._config.model_copy(update={"video": video})).chunks[self._num_chunks :]
        self._num_frames, self._num_chunks = num_frames, self._num_chunks + len(chunks)
        return chunks


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
        own = video.height, video.width
        return fit_size(height, width) if own in _SIZES_480P.values() else own

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


def _geometry(config: LongCatConfig) -> Geometry:
    geometry, sampler = wan_geometry(config.video), config.sampler
    if sampler.condition_frames < 2:
        raise UsageError(
            f"sampler.frames_per_chunk={sampler.frames_per_chunk} leaves {sampler.condition_frames} latent "
            f"frames of a window of {sampler.window} to continue from; largest: {sampler.window - 2}"
        )
    # Condition frames live for one segment only.
    most_tokens = sampler.condition_frames * geometry.tokens_per_frame
    hint = "for an unquantized cache, use --cache bf16"
    refuse_unpacked(config.cache, most_tokens, "the condition frames", hint)
    return geometry


def plan_chunks(
    num_frames: int, *, window: int, condition_frames: int, context_frames: int = 0, finished_frames: int = 0
) -> tuple[ChunkPlan, ...]:
    """Cut `num_frames` latent frames, the first `context_frames` given, into a base clip and segments.

    Args:
        window: Latent frames of the base clip, and of a segment with its condition frames.
        condition_frames: Latent frames that a segment goes on from.
        context_frames: 0 for a base clip from text, 1 for one from an image, `condition_frames` to go on from
            the end of a given clip.
        finished_frames: Latent frames of a video that was made before, the context's among them. Chunks of
            it are shown again: their condition is recalled for the decoder, and the model does not run.
    """
    if context_frames not in (0, 1, condition_frames):
        raise UsageError(
            f"{length_text(context_frames)} are given; "
            f"a segment continues from exactly {length_text(condition_frames)}"
        )
    if num_frames > MAX_FRAMES:
        most = length_text(MAX_FRAMES)
        raise UsageError(f"{length_text(num_frames)} are too many; at most {most} are planned")
    first_end = window if context_frames <= 1 else context_frames
    step = window - condition_frames
    segments, rest = divmod(num_frames - first_end, step)
    if segments < 0 or rest:
        below = first_end + max(0, segments) * step
        near = ", ".join(map(length_text, [below] if segments < 0 else [below, below + step]))
        raise UsageError(
            f"{length_text(num_frames)} do not fit a start of {first_end} and segments of {step}; "
            f"nearest: {near}"
        )
    if finished_frames > context_frames and (
        finished_frames < first_end or (finished_frames - first_end) % step
    ):
        raise UsageError(
            f"{length_text(finished_frames)} are given; they do not end with the first clip of {first_end} "
            f"latent frames or a segment of {step} after it"
        )
    pieces = []
    if context_frames <= 1:
        pieces.append((range(context_frames), range(context_frames, window)))
    for start in range(first_end, num_frames, step):
        pieces.append((range(start - condition_frames, start), range(start, start + step)))
    chunks: list[ChunkPlan] = []
    for index, (condition, made) in enumerate(pieces):
        frames, own = tuple(condition), tuple(made)
        chunk = ChunkPlan(index, (), prefill=frames, given=own)
        if own[-1] >= finished_frames:
            chunk = ChunkPlan(
                index,
                own,
                prefill=frames,
                reads=frames,
                prefill_commits=(frames,) if frames else (),
                evicts=chunks[-1].kept if chunks else (),
                # Every window begins at position 0.
                positions=tuple(range(len(frames) + len(own))),
            )
        chunks.append(chunk)
    return tuple(chunks)
