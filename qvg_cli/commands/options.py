"""Options that several commands share: declared once, so that they read alike everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvg_cli.errors import UsageError

if TYPE_CHECKING:
    from qvg_cli.config.load import Layer

Backend = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Model family. Without it, the built-in pocket model.", show_default=False
    ),
]
Pocket = Annotated[bool, typer.Option("--pocket", help="Use the backend's small built-in weights.")]
Seconds = Annotated[
    float | None,
    typer.Option(help="Length in seconds, rounded up to the next possible one.", show_default=False),
]
PixelFrames = Annotated[
    int | None,
    typer.Option(
        "--frames",
        "--num-frames",
        help="Length in pixel frames, those that one sees, rounded up to the next possible one. "
        "(Latent frames: --set video.frames=N.)",
        show_default=False,
    ),
]
Segments = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="longcat: length in segments, after the first clip or what is given.",
        show_default=False,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTHxHEIGHT", help="Size in pixels, the width first, such as 832x480.", show_default=False
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of the noise and the codecs.", show_default=False)]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Many videos: a .txt file with a prompt a line (# begins a comment), or a .jsonl file with an "
        "object a line (keys prompt, seed, name). With --segments: one video, a prompt for every clip of it.",
        show_default=False,
    ),
]
Schedule = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Prompts that change in the video: a .jsonl file with an object a line, prompt and where it "
        "begins among the new frames (key frame, seconds or chunk); rounded up to the next chunk.",
        show_default=False,
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default=False)]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Settings as YAML; the run.yaml of a run makes it again.", show_default=False
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting, such as video.fps=24. Repeatable.",
        show_default=False,
    ),
]
Pose = Annotated[
    str | None,
    typer.Option(
        metavar="MOVES",
        help="hyworldplay: how the camera moves, in latent frames, such as w-8,a-8 (w s a d, and turns up "
        "down left right); or a trajectory file, path.json.",
        show_default=False,
    ),
]
PadPose = Annotated[
    str | None,
    typer.Option(
        metavar="hold",
        help="hyworldplay: let the camera stand still where the video is longer than its pose.",
        show_default=False,
    ),
]
Image = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="hyworldplay: the picture to walk into. longcat: the first frame of the video.",
        show_default=False,
    ),
]
Context = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="hyworldplay: how the history is kept: append, rebuild or incremental.",
        show_default=False,
    ),
]
ShardOf = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="i/n",
        help="Make the i-th of n parts of --prompts. Started again, it goes on: videos that are there stay.",
        show_default=False,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Go on with the run in FOLDER after its last whole chunk, with its own settings.",
        show_default=False,
    ),
]
Window = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="self-forcing, hyworldplay: latent frames that are attended to, the chunk's own included; "
        "all is the whole history.",
        show_default=False,
    ),
]
Sink = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="self-forcing: first latent frames that a window never drops.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FOLDER", help="Results go to FOLDER/<backend>/<name>/, never over old ones."
    ),
]
VideosAsJson = Annotated[
    bool, typer.Option("--json", help="Print an object a video to stdout: paths and figures.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Only tell what the video needs, as qvg plan does; nothing is made."),
]
Card = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|SIZE",
        help='With --dry-run: the card it has to fit, such as "RTX 4090" or 24GiB. Without it, that of this '
        "machine.",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show the log too: times of every phase. (QVG_LOG=debug: more.)"),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def option_layers(
    *,
    prompt: str | None,
    cache: str | None,
    size: str | None,
    seed: int | None,
    device: str | None,
    pose: str | None = None,
    pad_pose: str | None = None,
    image: Path | None = None,
    context: str | None = None,
    window: str | None = None,
    sink: int | None = None,
    prompt_option: str = "PROMPT",
) -> list[Layer]:
    """The settings of options of their own, each with the option's name."""
    from qvg_cli.config.load import Layer
    from qvg_cli.planning.prompts import prompt_of_argument

    layers = []
    if prompt is not None:
        layers.append(Layer(prompt_option, {"prompt": prompt_of_argument(prompt)}))
    if cache is not None:
        layers.append(Layer("--cache", {"cache": {"preset": cache}}))
    if size is not None:
        width, height = _parse_size(size)
        layers.append(Layer("--size", {"video": {"height": height, "width": width}}))
    if seed is not None:
        layers.append(Layer("--seed", {"seed": seed}))
    if device is not None:
        layers.append(Layer("--device", {"device": device.lower()}))
    of_a_family = {
        "--pose": pose,
        "--pad-pose": pad_pose,
        "--image": image,
        "--context": None if context is None else context.lower(),
        "--window": window,
        "--sink": sink,
    }
    layers += [Layer(flag, {flag: value}) for flag, value in of_a_family.items() if value is not None]
    return layers


def refuse_beside_resume(given: Mapping[str, object]) -> None:
    """Refuse options that a run which goes on cannot take.

    Args:
        given: Values by option; none for one that was not given.

    Raises:
        UsageError: One was given.
    """
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"{name} and --resume were both given", hint="a run goes on with its own settings"
            )


def check_video_options(
    *,
    prompt: str | None,
    prompts: Path | None,
    segments: int | None,
    schedule: Path | None,
    seconds: float | None,
    frames: int | None,
    out: Path,
    card: str | None,
    is_dry_run: bool,
) -> None:
    """Refuse options of a command that makes videos where they contradict each other.

    Raises:
        UsageError: They do.
    """
    if prompt is not None and prompts is not None:
        raise UsageError("PROMPT and --prompts were both given", hint="put the prompt into the file")
    if prompts is not None and segments is not None and schedule is not None:
        raise UsageError("--schedule and --prompts with --segments were both given", hint="give one of them")
    check_length_options(seconds, frames, segments)
    if out.suffix in (".mp4", ".mkv", ".webm"):
        raise UsageError(f"--out {out} looks like a file", hint="give a folder; the video in it is video.mp4")
    if card is not None and not is_dry_run:
        raise UsageError("--card has no effect without --dry-run", hint="or ask qvg plan")


def check_length_options(seconds: float | None, frames: int | None, segments: int | None = None) -> None:
    """Refuse a length that is given twice.

    Raises:
        UsageError: It is.
    """
    lengths = {"--seconds": seconds, "--frames": frames, "--segments": segments}
    given = [name for name, value in lengths.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} were both given", hint="give one of them")


def _parse_size(text: str) -> tuple[int, int]:
    """Width and height."""
    width, separator, height = (part.strip() for part in text.lower().replace("\u00d7", "x").partition("x"))
    # Longer numbers than this Python does not even read.
    is_size = height.isdecimal() and width.isdecimal() and max(len(height), len(width)) < 10
    if not (separator and is_size):
        raise UsageError(f"--size {text} is not of the form WIDTHxHEIGHT", hint="for example --size 832x480")
    return int(width), int(height)
