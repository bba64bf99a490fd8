"""Chunks of the HY-WorldPlay family: four frames that look back at the newest, and at those of the same view.

Invariant: frames looked back at are chosen from the camera's path alone, so the whole plan is known before
anything runs. `sampler.window` counts the chunk's own frames too.

Source: Tencent-Hunyuan/HY-WorldPlay, `wan/inference` (context "rebuild"); svg-project/Quant-VideoGen,
`experiments/HY-WorldPlay` ("append"). "incremental" is ours.
"""

from __future__ import annotations

from qvg_cli.backends.hyworldplay.config import Context, HyWorldPlayConfig, WalkSamplerConfig
from qvg_cli.backends.hyworldplay.memory import CHUNK_FRAMES, Memory, ViewOverlap, ball_points
from qvg_cli.backends.hyworldplay.trajectory import Trajectory, camera_path
from qvg_cli.errors import UsageError
from qvg_cli.plan import ChunkPlan, VideoPlan, pixel_frames
from qvg_cli.video.picture import is_shipped, open_image

PATCH_SIZE = 2
MAX_SLOTS = 1024
"""Positions of the temporal rotary table that the model was built with."""

Frames = tuple[int, ...]


def plan_video(config: HyWorldPlayConfig) -> VideoPlan:
    """Plan a walk.

    Raises:
        UsageError: Pose, picture, size, length or context do not fit; the message says what would.
    """
    if config.source is not None:
        raise UsageError("source is not a setting of this model", hint="a walk begins in walk.image")
    if config.prompt_changes:
        raise UsageError("this model has one prompt for a whole walk", hint="leave the schedule out")
    _check_sampler(config.sampler)
    _check_size(config)
    path, notes = fit_path(config)
    image = config.walk.image
    if image is not None:
        open_image(image)
        if is_shipped(image):
            notes += (
                f"the walk begins in the built-in picture {image!r}; --image FILE takes another one, "
                "--set walk.image=null none",
            )
    factor = config.model.spatial_factor
    latent_height, latent_width = config.video.height // factor, config.video.width // factor
    tokens_per_frame = (latent_height // PATCH_SIZE) * (latent_width // PATCH_SIZE)
    if config.sampler.context == "rebuild":
        _check_rebuilt_cache(config, tokens_per_frame)
    return VideoPlan(
        chunks=plan_chunks(len(path), config.sampler.context, memory_of(path, config.sampler)),
        tokens_per_frame=tokens_per_frame,
        latent_shape=(config.model.latent_channels, latent_height, latent_width),
        height=config.video.height,
        width=config.video.width,
        notes=notes,
    )


def plan_chunks(num_frames: int, context: Context, memory: Memory) -> tuple[ChunkPlan, ...]:
    """Cut `num_frames` latent frames into chunks.

    A frame leaves the cache as soon as no chunk to come looks back at it.
    """
    starts = range(0, num_frames, CHUNK_FRAMES)
    reads = [memory.context(start) for start in starts]
    needed: list[set[int]] = [set()]
    for frames in reversed(reads):
        needed.append(needed[-1].union(frames))
    needed.reverse()

    chunks: list[ChunkPlan] = []
    cached: Frames = ()
    for index, start in enumerate(starts):
        own = tuple(range(start, start + CHUNK_FRAMES))
        kept = () if context == "rebuild" else tuple(frame for frame in cached if frame in needed[index])
        if context == "incremental":
            prefill: Frames = ()
            commits = own if needed[index + 1] else ()
        else:
            prefill = reads[index]
            commits = tuple(frame for frame in prefill if frame not in kept)
        chunks.append(
            ChunkPlan(
                index=index,
                makes=own,
                prefill=prefill,
                reads=reads[index],
                commits=commits,
                evicts=tuple(frame for frame in cached if frame not in kept),
            )
        )
        cached = kept + commits
    return tuple(chunks)


def memory_of(path: Trajectory, sampler: WalkSamplerConfig) -> Memory:
    """The memory of a walk along `path`."""
    return Memory(
        path.viewmats,
        ViewOverlap(ball_points()),
        num_frames=None if sampler.window is None else sampler.window - CHUNK_FRAMES,
        num_recalled=sampler.recall,
    )


def fit_path(config: HyWorldPlayConfig) -> tuple[Trajectory, tuple[str, ...]]:
    """The camera path with one pose a latent frame of the video, and what is to be said about it.

    Raises:
        UsageError: The pose is wrong, or too short, or the length is not a number of whole chunks.
    """
    path = camera_path(config.walk.pose)
    num_frames, poses = config.video.frames, len(path)
    if poses < num_frames and config.walk.pad_pose is None:
        longest = poses - poses % CHUNK_FRAMES
        fits = f"it is enough for {_length(longest)}" if longest else f"a chunk has {CHUNK_FRAMES}"
        raise UsageError(
            f"the pose is too short: it gives {poses} camera poses with its start, the video has "
            f"{_length(num_frames)}; {fits}",
            hint="make the pose longer, or let the camera stand still at the end: --pad-pose hold",
        )
    if num_frames % CHUNK_FRAMES:
        below = num_frames - num_frames % CHUNK_FRAMES
        near = ", ".join(_length(length) for length in (below, below + CHUNK_FRAMES) if length)
        raise UsageError(f"{_length(num_frames)} do not fit chunks of {CHUNK_FRAMES}; nearest: {near}")
    notes = list(path.notes)
    if poses < num_frames:
        notes.append(f"the camera stands still from latent frame {poses} on: its pose has ended")
    # A walk of whole chunks has a pose more than frames: where the last of them leads to.
    if poses > num_frames + 1:
        notes.append(
            f"of the pose's latent frames 0 to {poses - 1}, {num_frames} to {poses - 1} are after the end of "
            "the video"
        )
    return path.take(num_frames), tuple(notes)


def _length(num_frames: int) -> str:
    return f"{num_frames} latent frames ({pixel_frames(num_frames)} pixel frames)"


def _check_size(config: HyWorldPlayConfig) -> None:
    multiple = config.model.spatial_factor * PATCH_SIZE
    for name, value in (("height", config.video.height), ("width", config.video.width)):
        if value % multiple:
            below = value // multiple * multiple
            near = f"{below}, {below + multiple}" if below else str(multiple)
            raise UsageError(f"{name} {value} is not a multiple of {multiple}; nearest: {near}")


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


def _check_rebuilt_cache(config: HyWorldPlayConfig, tokens_per_frame: int) -> None:
    """Refuse what would leave a rebuilt context unpacked without a word: it lives for one chunk only."""
    cache = config.cache
    most_tokens = CHUNK_FRAMES * tokens_per_frame
    for name, value, limit in (
        ("keep_recent_chunks", cache.keep_recent_chunks, 0),
        ("keep_sink", cache.keep_sink, False),
        ("span_tokens", cache.span_tokens, most_tokens),
    ):
        if value > limit:
            raise UsageError(
                f"cache.{name}={value} would leave a rebuilt context unpacked; with context rebuild "
                f"it is {limit}" + (" or less" if limit else ""),
                hint="or take --context append or incremental",
            )
