"""Chunks of the Self-Forcing family: blocks of frames, the whole history or a rolling window with a sink.

A chunk that ends before frame `end` attends to everything while `end <= window`; afterwards to the sink and
to the newest `window - sink` frames, its own included. A frame of the sink stands at its rank in the sink,
another frame `f` at `f - max(0, end - position_span)`; without a span every frame stands at its own number.

Source: guandeh17/Self-Forcing at 33593df, the rolling update of `causal_model.py`, as a rule on frame ids;
positions and prompt changes: SOTAMak1r/Infinite-Forcing at b8feaf5, NVlabs/LongLive at e52d9ef.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from qvg_cli.errors import UsageError
from qvg_cli.models.base import Extension, Planner
from qvg_cli.models.self_forcing.config import TRAINED_FRAMES, BlockSamplerConfig, SelfForcingConfig
from qvg_cli.models.wan.plan import wan_geometry
from qvg_cli.planning.chunks import ChunkPlan, Frames, Geometry, VideoPlan, length_text, pixel_frames

MAX_FRAMES = 1024
"""Positions of the temporal rotary table that the models were built with."""


def plan_video(config: SelfForcingConfig) -> VideoPlan:
    """Plan a run; a `UsageError` names the nearest size, length, window or context that fits."""
    geometry = _geometry(config)
    context_frames, is_begun = _given(config)
    chunks = plan_chunks(
        config.video.frames,
        config.sampler,
        context_frames=context_frames,
        is_begun=is_begun,
        prompt_begins=[change.frame for change in config.prompt_changes],
    )
    return VideoPlan(**vars(geometry), chunks=chunks, notes=_about_length(config))


def _given(config: SelfForcingConfig) -> tuple[int, bool]:
    """Latent frames that are given, and whether some of them were made by the model, in an earlier run."""
    source = config.source
    return (0, False) if source is None else (source.frames, source.latents is not None)


def _geometry(config: SelfForcingConfig) -> Geometry:
    geometry, source = wan_geometry(config.video), config.source
    if source is not None and source.image is not None and config.sampler.image_frames is None:
        raise UsageError(
            f"{config.backend} is text to video: there are no published weights of it that take a picture",
            hint="omit --image, or use a checkpoint that takes one: causal-forcing-frame, sgf-chunk",
        )
    _check_window(config.sampler)
    _check_spans(config, geometry.tokens_per_frame)
    return geometry


def _about_length(config: SelfForcingConfig) -> tuple[str, ...]:
    """What is known of videos that are longer than those of the training."""
    sampler, trained = config.sampler, config.model.trained_frames
    if trained is None or config.video.frames <= trained or config.model.weights == "pocket":
        return ()
    known = "attending to the whole history, as in Quant VideoGen's runs of 180 latent frames"
    if sampler.window is not None:
        known = f"attending to {sampler.window} latent frames"
        if sampler.position_span is None and config.backend == "self-forcing":
            known += "; users report flicker about every 5 s with 21"
    return (f"the model was trained on {length_text(trained)}; beyond that: {known}",)


def plan_chunks(
    num_frames: int,
    sampler: BlockSamplerConfig,
    *,
    context_frames: int = 0,
    is_begun: bool = False,
    commit_last: bool = False,
    prompt_begins: Sequence[int] = (),
) -> tuple[ChunkPlan, ...]:
    """Cut `num_frames` latent frames, the first `context_frames` of them given, into chunks.

    Args:
        is_begun: Whether some of the given frames were made by the model, as part of the same video.
        prompt_begins: Pixel frames at which the prompt changes.
    """
    planner = BlockPlanner(sampler, None, context_frames, is_begun=is_begun)
    _check_length(num_frames, context_frames + planner.first_length, sampler)
    chunks: list[ChunkPlan] = []
    while planner.num_frames < num_frames:
        if pixel_frames(planner.num_frames) in prompt_begins:
            chunks += planner.recache()
        chunks.append(planner.chunk())
    if not commit_last:
        chunks[-1] = replace(chunks[-1], commits=(), prefill_commits=())
    return tuple(chunks)


class BlockPlanner(Planner):
    """Cuts a video into blocks of frames, the given ones first, if window and context fit.

    Args:
        geometry: Shape of the frames; `None` for the chunks alone.

    Attributes:
        num_frames: Latent frames planned so far.
        first_length: Frames of a first chunk that is shorter than the others; 0 if there is none.
    """

    def __init__(
        self,
        sampler: BlockSamplerConfig,
        geometry: Geometry | None,
        context_frames: int = 0,
        *,
        is_begun: bool = False,
    ) -> None:
        self.num_frames = 0
        self._sampler = sampler
        self._geometry = geometry
        self._given = _context_blocks(context_frames, sampler.frames_per_chunk)
        self.first_length = 1 if sampler.independent_first_frame and not self._given else 0
        self._num_chunks = 0
        self._num_given = 0
        self._has_made = is_begun
        self._cached: Frames = ()
        self._sink: Frames = tuple(range(sampler.sink))
        _check_window(sampler)

    @property
    def geometry(self) -> Geometry:
        assert self._geometry is not None
        return self._geometry

    def next(self, *, pose: str | None = None, is_new_prompt: bool = False) -> tuple[ChunkPlan, ...]:
        if pose is not None:
            raise UsageError("this model has no camera: pose is not an option of it")
        sampler = self._sampler
        if sampler.position_span is None and self.num_frames + sampler.frames_per_chunk > MAX_FRAMES:
            raise UsageError(f"the video has reached the model's {MAX_FRAMES} positions")
        given = [self.chunk() for _ in range(len(self._given) - self._num_given)]
        return (*given, *(self.recache() if is_new_prompt else ()), self.chunk())

    def chunk(self) -> ChunkPlan:
        """The next chunk: a block of the given frames, or one that is made."""
        is_given = self._num_given < len(self._given)
        length = self._given[self._num_given] if is_given else self._sampler.frames_per_chunk
        self._num_given += is_given
        if self.num_frames == 0:
            length = self.first_length or length
        own = tuple(range(self.num_frames, self.num_frames + length))
        self.num_frames += length
        kept = self._window(self.num_frames)
        chunk = self._planned(
            ChunkPlan(
                index=self._num_chunks,
                makes=() if is_given else own,
                prefill=own if is_given else (),
                reads=kept,
                prefill_commits=(own,) if is_given else (),
                commits=() if is_given else own,
                evicts=tuple(frame for frame in self._cached if frame not in kept),
                is_first_made=not is_given and not self._has_made,
            )
        )
        self._has_made = self._has_made or not is_given
        self._cached = kept + own
        return chunk

    def recache(self) -> tuple[ChunkPlan, ...]:
        """The chunk in which the newest frames pass through the model again, under another prompt; if any."""
        sampler, end = self._sampler, self.num_frames
        if sampler.recache == "off" or not self._cached:
            return ()
        window = end if sampler.window is None else sampler.window
        reads: Frames = ()
        first = max(0, end - window)
        if end > window and sampler.recache == "keep_sink":
            reads, first = self._sink, end - (window - sampler.sink)
        elif end > window:
            self._sink = tuple(range(first, first + sampler.sink))
        again = tuple(range(first, end))
        chunk = self._planned(
            ChunkPlan(
                index=self._num_chunks,
                makes=(),
                prefill=again,
                reads=reads,
                prefill_commits=self._blocks(again),
                evicts=tuple(frame for frame in self._cached if frame not in reads),
            )
        )
        self._cached = reads + again
        return (chunk,)

    def _planned(self, chunk: ChunkPlan) -> ChunkPlan:
        """Count `chunk`, and stand the frames in its view where the rule has them."""
        self._num_chunks += 1
        span = self._sampler.position_span
        if span is None:
            return chunk
        rank = {frame: number for number, frame in enumerate(self._sink)}
        shift = max(0, self.num_frames - span)
        return replace(chunk, positions=tuple(rank.get(frame, frame - shift) for frame in chunk.view))

    def _window(self, end: int) -> Frames:
        """Cached frames that a chunk ending before frame `end` reads."""
        sampler = self._sampler
        if sampler.window is None or end <= sampler.window:
            return self._cached
        newest = end - (sampler.window - sampler.sink)
        return tuple(frame for frame in self._cached if frame in self._sink or frame >= newest)

    def _blocks(self, frames: Frames) -> tuple[Frames, ...]:
        """Frames that pass together, cut where chunks and the sink end: they leave as they came."""
        size = self._sampler.frames_per_chunk
        first = (self._given or [self.first_length])[0] % size
        grouped = groupby(frames, lambda frame: (frame in self._sink, (frame - first) // size))
        return tuple(tuple(group) for _, group in grouped)


def open_planner(config: SelfForcingConfig) -> BlockPlanner:
    """The planner of a video without an end; `UsageError` if size, window or context do not fit."""
    context_frames, is_begun = _given(config)
    return BlockPlanner(config.sampler, _geometry(config), context_frames, is_begun=is_begun)


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


def _context_blocks(context_frames: int, size: int) -> list[int]:
    """Lengths of the blocks in which given frames pass: whole blocks, or one frame and then blocks."""
    blocks, rest = divmod(context_frames, size)
    if rest not in (0, 1):
        near = context_frames - rest
        raise UsageError(
            f"{context_frames} given latent frames do not fit chunks of {size}; nearest: {near}, {near + 1}"
        )
    return [1] * rest + [size] * blocks


def _check_length(num_frames: int, first: int, sampler: BlockSamplerConfig) -> None:
    size = sampler.frames_per_chunk
    if sampler.position_span is None and num_frames > MAX_FRAMES:
        longest = first + (MAX_FRAMES - first) // size * size
        raise UsageError(
            f"{num_frames} latent frames exceed the model's {MAX_FRAMES} positions; "
            f"longest: {length_text(longest)}",
            hint="with --window and --position-span there is no limit",
        )
    if num_frames <= first - 1 or (num_frames - first) % size:
        below = first + max(0, (num_frames - first) // size) * size
        longest = num_frames + size if sampler.position_span is not None else MAX_FRAMES
        lengths = [length for length in (below, below + size) if 0 < length <= longest]
        near = ", ".join(f"{length} ({pixel_frames(length)} pixel frames)" for length in lengths)
        raise UsageError(f"{length_text(num_frames)} do not fit chunks of {size}; nearest: {near}")


def _check_spans(config: SelfForcingConfig, tokens_per_frame: int) -> None:
    """Refuse spans that a rolling window would drop before they are full: nothing would ever be packed."""
    sampler, cache = config.sampler, config.cache
    if sampler.window is None or config.video.frames <= sampler.window:
        return
    chunks = (sampler.window - sampler.sink) // sampler.frames_per_chunk - cache.keep_recent_chunks
    most_tokens = chunks * sampler.frames_per_chunk * tokens_per_frame
    if cache.span_tokens > most_tokens:
        window = f"a window of {sampler.window} frames beside its sink of {sampler.sink}"
        raise UsageError(
            f"cache.span_tokens={cache.span_tokens} is more than the {most_tokens} tokens that wait in "
            f"{window} and the {cache.keep_recent_chunks} chunks kept unpacked",
            hint="use a longer window, or a smaller cache.span_tokens or cache.keep_recent_chunks",
        )


def _check_window(sampler: BlockSamplerConfig) -> None:
    least = sampler.sink + sampler.frames_per_chunk
    if sampler.window is not None and sampler.window < least:
        raise UsageError(
            f"window {sampler.window} is too small for sink {sampler.sink} and chunks of "
            f"{sampler.frames_per_chunk} frames; smallest: {least}"
        )
    if sampler.position_span is not None:
        if sampler.window is None:
            raise UsageError(
                f"sampler.position_span={sampler.position_span} needs a window",
                hint=f"use --window {sampler.position_span} or less",
            )
        if not sampler.window <= sampler.position_span <= MAX_FRAMES:
            window = f"a window of {sampler.window}: {sampler.window} to {MAX_FRAMES} do"
            raise UsageError(f"sampler.position_span={sampler.position_span} does not fit {window}")
    if sampler.recache != "off" and sampler.window is None:
        why = "otherwise the whole history would be recomputed"
        raise UsageError(
            f"sampler.recache={sampler.recache} needs a window: {why}",
            hint="use --window, or set sampler.recache=off",
        )
