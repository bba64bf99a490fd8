"""The video that `qvg extend` goes on from: a clip of any kind, or a run with its latents. No torch."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qvg_cli.config.load import Request
from qvg_cli.config.resources import preset_names
from qvg_cli.config.schema import RunConfig, SourceConfig
from qvg_cli.engine.lengths import with_video
from qvg_cli.errors import UsageError
from qvg_cli.files import RunDir, slug
from qvg_cli.models.registry import extension_of, load_config
from qvg_cli.planning.chunks import length_text, pixel_frames
from qvg_cli.text_files import find_unwritable
from qvg_cli.video.clip import Clip, open_clip, survey_clip
from qvg_cli.video.picture import address_in, fitting_note, open_image

_NO_CUT = 0.005
"""Part of a clip's picture that is not worth a word."""
_LEAST_KEPT = 0.7
"""Part of a clip's picture that fitting it into the video must leave."""


@dataclass(frozen=True)
class Start:
    """The video file that is gone on from, and the run that made it; `None` for a clip from anywhere."""

    video: Path
    run: RunDir | None = None

    def settings_for(self, backend: str | None) -> Path | None:
        """The file of the settings that the video was made with; `None` if they are not of `backend`."""
        if self.run is None:
            return None
        return self.run.config if backend in (None, _settings(self.run).backend) else None

    @property
    def last_prompt(self) -> str | None:
        """The prompt that the video ends with; `None` for a clip from anywhere."""
        if self.run is None:
            return None
        made_with = _settings(self.run)
        return [made_with.prompt, *(change.prompt for change in made_with.prompt_changes)][-1]

    def next_name(self, preset: str) -> str:
        """Name of the folder of a video that continues this one with a cache."""
        stem = self.video.stem if self.run is None else self.run.path.absolute().name
        before = rf"-extended(-({'|'.join(map(re.escape, preset_names()))}))?(-[0-9]+)?$"
        return f"{re.sub(before, '', slug(stem)) or 'video'}-extended-{preset}"


def _settings(run: RunDir) -> RunConfig:
    return load_config(Request(file=run.config)).config


def find_start(path: Path) -> Start:
    """The clip or the run at `path`; a run is known by its run.yaml and latents.safetensors."""
    if (address := address_in(str(path))) is not None:
        raise UsageError(f"{address} is a URL, not a file", hint="save the video to a file first")
    if found := find_unwritable(str(path.absolute())):
        raise UsageError(
            f"cannot continue {path.absolute()}: {found}", hint="run.yaml is UTF-8 text; rename the file"
        )
    if not path.exists():
        raise UsageError(f"no video {path}", hint="use a video file, or the folder of a run")
    run = RunDir(path if path.is_dir() else path.parent)
    is_run = run.config.is_file() and run.latents.is_file() and run.video.is_file()
    if path.is_dir():
        if run.state.is_dir():
            raise UsageError(
                f"the run in {path} is unfinished", hint=f"finish it: qvg generate --resume {path}"
            )
        if not is_run:
            lacks = f"{run.config.name}, {run.latents.name} and {run.video.name}"
            raise UsageError(
                f"{path} is not the folder of a run: it lacks {lacks}",
                hint="use a video file, or a folder such as results/self-forcing/NAME",
            )
        return Start(run.video, run)
    return Start(path, run if is_run and path.name == run.video.name else None)


def take_up(
    start: Start, config: RunConfig, note: Callable[[str], None], *, is_size_given: bool
) -> RunConfig:
    """`config` of a run that goes on from `start`, of the default length, and its size if none was given."""
    rules = extension_of(config)
    if start.run is None:
        return _after_clip(start.video, config, note, is_size_given=is_size_given)
    made_with = _settings(start.run)
    num_frames = _count_latents(start.run.latents)
    obstacle = _obstacle(made_with, config)
    if obstacle is None and rules.default_frames(num_frames) == 0:
        obstacle = f"its {num_frames} latent frames leave no room in the positions of the model"
    if obstacle is not None:
        note(f"{start.run.path}: {obstacle}; continuing {start.video.name} like any other clip")
        return _after_clip(start.video, config, note, is_size_given=is_size_given)
    old, latents = made_with.source, str(start.run.latents.absolute())
    clip, clip_frames = (old.clip, old.clip_frames) if old is not None else (None, 0)
    source = SourceConfig(frames=num_frames, clip=clip, clip_frames=clip_frames, latents=latents)
    note(f"continuing from the {length_text(num_frames)} of {start.run.path}")
    return _with_source(config, source, rules.default_frames(num_frames))


def take_picture(config: RunConfig, note: Callable[[str], None], *, is_size_given: bool) -> RunConfig:
    """`config` of a run that begins with a picture, of its shape unless a size was asked for."""
    assert config.source is not None
    assert config.source.image is not None
    name = config.source.image
    width, height = open_image(name).size
    if not is_size_given:
        height, width = extension_of(config).fit_size(height, width)
        config = with_video(config, height=height, width=width)
    video = config.video
    note(fitting_note(name, height=video.height, width=video.width))
    return config


def has_size(request: Request) -> bool:
    asked = [f"video.{name}" for layer in request.options for name in layer.values.get("video", ())]
    asked += [text.partition("=")[0].strip() for text in request.sets]
    return not {"video.height", "video.width"}.isdisjoint(asked)


def _after_clip(
    path: Path, config: RunConfig, note: Callable[[str], None], *, is_size_given: bool
) -> RunConfig:
    clip = open_clip(path)
    rules = extension_of(config)
    if not is_size_given:
        height, width = rules.fit_size(clip.height, clip.width)
        config = with_video(config, height=height, width=width)
    video = config.video
    kept = clip.share_kept(video.height, video.width)
    if kept < _LEAST_KEPT:
        raise UsageError(
            f"{path} is {clip.width} pixels wide and {clip.height} high; of its frames "
            f"{kept:.0%} would be left in a video {video.width} wide and {video.height} high, "
            f"at least {_LEAST_KEPT:.0%} is needed",
            hint="use a --size of the same shape, or crop it first",
        )
    survey = survey_clip(clip, video.fps)
    clip_frames = rules.clip_frames(survey.num_frames)
    note(_fitting(clip, config, survey.num_frames, kept))
    for line in survey.notes:
        note(f"{path}: {line}")
    note(f"the model continues from its last {pixel_frames(clip_frames)} frames ({clip_frames} latent)")
    source = SourceConfig(frames=clip_frames, clip=str(path.absolute()), clip_frames=clip_frames)
    return _with_source(config, source, rules.default_frames(clip_frames))


def _with_source(config: RunConfig, source: SourceConfig, new_frames: int) -> RunConfig:
    longer = with_video(config, frames=source.frames + new_frames)
    return longer.model_copy(update={"source": source})


def _obstacle(made_with: RunConfig, config: RunConfig) -> str | None:
    """Why the latents of a run cannot be used with other settings; `None` if they can."""
    old, new = made_with.video, config.video
    if (made_with.backend, made_with.model.weights) != (config.backend, config.model.weights):
        return "its latents are from another model"
    if (old.height, old.width, old.fps) != (new.height, new.width, new.fps):
        return "its latents have another size or frame rate"
    clip = made_with.source.clip if made_with.source is not None else None
    if clip is not None and not Path(clip).is_file():
        return f"the clip {clip} that it begins with is gone"
    return None


def _count_latents(path: Path) -> int:
    try:
        with safe_open(path, framework="numpy") as file:
            shape = file.get_slice("latents").get_shape()
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"cannot read {path}: {error}", hint="copy the video elsewhere to continue it like any other clip"
        ) from error
    if len(shape) != 5 or shape[2] < 1:
        raise UsageError(f"{path} holds no latents of a video: its shape is {tuple(shape)}")
    return int(shape[2])


def _fitting(clip: Clip, config: RunConfig, num_frames: int, kept: float) -> str:
    """How a clip is made to fit, in a line."""
    video = config.video
    told = f"{clip.path}: {num_frames} frames of {video.width} x {video.height} at {video.fps} fps"
    changes = []
    if (clip.width, clip.height) != (video.width, video.height):
        cut = "" if 1 - kept < _NO_CUT else f", {1 - kept:.0%} of the picture cropped"
        changes.append(f"scaled from {clip.width} x {clip.height}{cut}")
    if abs(clip.fps - video.fps) > 0.01:
        way = "frames dropped" if clip.fps > video.fps else "frames repeated"
        changes.append(f"from {clip.fps:g} fps with {way}")
    return "; ".join([told, *changes])
