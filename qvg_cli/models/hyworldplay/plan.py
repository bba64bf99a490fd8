"""Chunks of the HY-WorldPlay family: four frames that look back at the newest, and at those of the same view.

Invariant: frames looked back at are chosen from the camera's path up to the chunk, so a walk that is planned
move by move reads what one reads that is planned whole. `sampler.window` counts the chunk's own frames too.

Source: Tencent-Hunyuan/HY-WorldPlay, `wan/inference` (context "rebuild"); svg-project/Quant-VideoGen,
`experiments/HY-WorldPlay` ("append"). "incremental" is ours.
"""

from collections.abc import Collection
from dataclasses import replace

from qvg_cli.errors import UsageError
from qvg_cli.models.base import Planner
from qvg_cli.models.hyworldplay.config import Context, HyWorldPlayConfig, WalkSamplerConfig
from qvg_cli.models.hyworldplay.memory import CHUNK_FRAMES, Memory, ViewOverlap, ball_points
from qvg_cli.models.hyworldplay.pose import Command, format_pose, parse_pose, take_frames
from qvg_cli.models.hyworldplay.trajectory import Array, Trajectory, camera_path, walk
from qvg_cli.models.wan.plan import refuse_unpacked, wan_geometry
from qvg_cli.planning.chunks import ChunkPlan, Frames, Geometry, VideoPlan, length_text
from qvg_cli.video.picture import fitting_note, is_shipped

MAX_SLOTS = 1024
"""Positions of the temporal rotary table that the model was built with."""


def plan_video(config: HyWorldPlayConfig) -> VideoPlan:
    """Plan a walk; `UsageError` if pose, picture, size, length or context do not fit."""
    if config.prompt_changes:
        raise UsageError("this model uses one prompt for the whole walk", hint="omit --schedule")
    geometry = _geometry(config)
    path, notes = fit_path(config)
    if (image := config.walk.image) is not None:
        note = fitting_note(image, height=config.video.height, width=config.video.width)
        if is_shipped(image):
            others = "--image FILE uses another one, --set walk.image=null none"
            note = f"starting from the built-in picture {image!r}; {others}"
        notes += (note,)
    return VideoPlan(**vars(geometry), chunks=plan_chunks(path, config.sampler), notes=notes)


def plan_chunks(path: Trajectory, sampler: WalkSamplerConfig) -> tuple[ChunkPlan, ...]:
    """Cut a walk along the whole of `path` into chunks.

    A frame leaves the cache as soon as no chunk to come looks back at it.
    """
    memory = memory_of(path, sampler)
    starts = range(0, len(path), CHUNK_FRAMES)
    reads = [memory.context(start) for start in starts]
    needed: list[set[int]] = [set()]
    for frames in reversed(reads):
        needed.append(needed[-1].union(frames))
    needed.reverse()

    chunks: list[ChunkPlan] = []
    cached: Frames = ()
    for index in range(len(starts)):
        chunk, cached = _chunk(index, sampler.context, reads[index], cached, needed[index])
        chunks.append(chunk if needed[index + 1] else replace(chunk, commits=()))
    return tuple(chunks)


class WalkPlanner(Planner):
    """Plans a walk move by move, and holds the camera's path so far, one pose a latent frame.

    Nothing that a later move may look back at leaves the cache, whatever that will be. Without a `path` that
    is known whole, one grows with every step.
    """

    def __init__(self, config: HyWorldPlayConfig, path: Trajectory | None = None) -> None:
        self._config = config
        self._geometry = _geometry(config)
        self._commands: tuple[Command, ...] = ()
        self.path = walk(()) if path is None else path
        self._num_chunks = 0
        self._cached: Frames = ()

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    @property
    def viewmats(self) -> Array:
        return self.path.viewmats

    def with_path(self, config: HyWorldPlayConfig) -> HyWorldPlayConfig:
        pose = format_pose(self._commands)
        return config.model_copy(update={"walk": config.walk.model_copy(update={"pose": pose})})

    def follow(self, config: HyWorldPlayConfig) -> None:
        pose, num_frames = config.walk.pose, config.video.frames
        if pose.strip().endswith(".json"):
            raise UsageError(
                f"the walk follows the file {pose}: no move can be added", hint="begin with a pose text"
            )
        commands = take_frames(parse_pose(pose).commands, num_frames - 1)
        if sum(command.frames for command in commands) < num_frames - 1:
            raise UsageError("the walk holds its last pose: no move can be added")
        self._commands, self.path = commands, walk(commands)

    def next(self, *, pose: str | None = None, is_new_prompt: bool = False) -> tuple[ChunkPlan, ...]:
        if is_new_prompt:
            raise UsageError("this model uses one prompt for the whole walk", hint="start a new session")
        commands = self._commands if pose is None else self._commands + parse_pose(pose).commands
        path = self.path if pose is None else walk(commands)
        index, sampler = self._num_chunks, self._config.sampler
        start = index * CHUNK_FRAMES
        missing = start + CHUNK_FRAMES - len(path)
        if missing > 0:
            raise UsageError(
                f"the next chunk needs {missing} more latent frames of camera path",
                hint=f"pass a pose such as w-{CHUNK_FRAMES}",
            )
        self._commands, self.path = commands, path
        reads = memory_of(path, sampler).context(start)
        needed = set(self._cached)
        if sampler.window is not None and not sampler.recall:
            needed = set(range(max(0, start + CHUNK_FRAMES - sampler.window), start))
        chunk, self._cached = _chunk(index, sampler.context, reads, self._cached, needed)
        self._num_chunks = index + 1
        return (chunk,)


def _chunk(
    index: int, context: Context, reads: Frames, cached: Frames, needed: Collection[int]
) -> tuple[ChunkPlan, Frames]:
    """One chunk that looks back at `reads`, and what is cached after it; later ones may need `needed`."""
    own = tuple(range(index * CHUNK_FRAMES, (index + 1) * CHUNK_FRAMES))
    kept = () if context == "rebuild" else tuple(frame for frame in cached if frame in needed)
    is_incremental = context == "incremental"
    added = tuple(frame for frame in reads if frame not in kept)
    chunk = ChunkPlan(
        index=index,
        makes=own,
        prefill=() if is_incremental else reads,
        reads=reads,
        prefill_commits=(added,) if added and not is_incremental else (),
        commits=own if is_incremental else (),
        evicts=tuple(frame for frame in cached if frame not in kept),
        # Time has no gaps: the history first, then the chunk.
        positions=tuple(range(len(reads) + len(own))),
    )
    return chunk, kept + chunk.kept


def _geometry(config: HyWorldPlayConfig) -> Geometry:
    if config.source is not None:
        raise UsageError("source is not a setting of this model", hint="a walk begins in walk.image")
    _check_sampler(config.sampler)
    model = config.model
    geometry = wan_geometry(config.video, channels=model.latent_channels, spatial_factor=model.spatial_factor)
    if config.sampler.context == "rebuild":
        most_tokens, hint = (
            CHUNK_FRAMES * geometry.tokens_per_frame,
            "or take --context append or incremental",
        )
        refuse_unpacked(config.cache, most_tokens, "a context that is rebuilt", hint)
    return geometry


def memory_of(path: Trajectory, sampler: WalkSamplerConfig) -> Memory:
    num_frames = None if sampler.window is None else sampler.window - CHUNK_FRAMES
    return Memory(path.viewmats, ViewOverlap(ball_points()), num_frames, num_recalled=sampler.recall)


def fit_path(config: HyWorldPlayConfig) -> tuple[Trajectory, tuple[str, ...]]:
    """One pose a latent frame, and what is to be said about it; `UsageError` if pose or length do not fit."""
    path = camera_path(config.walk.pose)
    num_frames, poses = config.video.frames, len(path)
    if poses < num_frames and config.walk.pad_pose is None:
        longest = poses - poses % CHUNK_FRAMES
        fits = f"it is enough for {length_text(longest)}" if longest else f"a chunk has {CHUNK_FRAMES}"
        raise UsageError(
            f"the pose is too short: it gives {poses} camera poses with its start, the video has "
            f"{length_text(num_frames)}; {fits}",
            hint="use a longer --pose, or hold the last pose: --pad-pose hold",
        )
    if num_frames % CHUNK_FRAMES:
        below = num_frames - num_frames % CHUNK_FRAMES
        near = ", ".join(length_text(length) for length in (below, below + CHUNK_FRAMES) if length)
        raise UsageError(f"{length_text(num_frames)} do not fit chunks of {CHUNK_FRAMES}; nearest: {near}")
    notes = list(path.notes)
    if poses < num_frames:
        notes.append(f"the camera path ends at latent frame {poses}; its last pose is held")
    # A walk of whole chunks has a pose more than frames: where the last of them leads to.
    if poses > num_frames + 1:
        left = f"{num_frames} to {poses - 1} are after the end of the video"
        notes.append(f"of the pose's latent frames 0 to {poses - 1}, {left}")
    return path.take(num_frames), tuple(notes)


def _check_sampler(sampler: WalkSamplerConfig) -> None:
    if sampler.frames_per_chunk != CHUNK_FRAMES:
        raise UsageError(
            f"sampler.frames_per_chunk={sampler.frames_per_chunk}: this model makes chunks of {CHUNK_FRAMES}"
        )
    if sampler.recall % CHUNK_FRAMES:
        raise UsageError(
            f"sampler.recall={sampler.recall} is not a multiple of {CHUNK_FRAMES}: whole clips are recalled"
        )
    if sampler.window is None:
        return
    least = sampler.recall + 2 * CHUNK_FRAMES
    if not least <= sampler.window <= MAX_SLOTS or sampler.window % CHUNK_FRAMES:
        raise UsageError(
            f"sampler.window={sampler.window} does not fit: with {sampler.recall} recalled frames it is "
            f"{least}, {least + CHUNK_FRAMES}, ... or at most {MAX_SLOTS}, or null for the whole history"
        )
