"""`qvg generate`: from the arguments to jobs that are checked whole before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvg_cli.console import Console
from qvg_cli.errors import UsageError

if TYPE_CHECKING:
    from qvg_cli.config_load import Layer


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="What the video shows. Without it, the demo prompt.", show_default=False
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Model family. Without it, the built-in pocket model.", show_default=False
        ),
    ] = None,
    pocket: Annotated[
        bool, typer.Option("--pocket", help="Use the backend's small built-in weights.")
    ] = False,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET", help="How the attention history is kept, such as int2, the default, or bf16.", show_default=False
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Length in seconds, rounded up to the next possible one.", show_default=False),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Length in pixel frames, those that one sees. (Latent frames: --set video.frames=N.)",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHTxWIDTH",
            help="Size in pixels, the height first, such as 480x832.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the noise and the codecs.", show_default=False)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Many videos: a .txt file with a prompt a line, or a .jsonl file with an object a line "
            "(keys prompt, seed, name).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Results go to FOLDER/<backend>/<name>/, never over old ones."),
    ] = Path("results"),
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default=False)] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Settings as YAML; the run.yaml of a run makes it again.", show_default=False
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="One setting, such as cache.block_size=16. Repeatable.",
            show_default=False,
        ),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print an object a video to stdout: paths and figures.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make a video and report the memory of its history.

    The run's folder gets video.mp4, latents.safetensors, memory.json, memory.png and run.yaml. The video's
    path goes to stdout, everything else to stderr.
    """
    from qvg_cli.commands.jobs import Planned, plan_jobs
    from qvg_cli.config_load import Request

    del debug
    if prompt is not None and prompts is not None:
        raise UsageError("PROMPT and --prompts were both given", hint="put the prompt into the file")
    if seconds is not None and frames is not None:
        raise UsageError("--seconds and --frames were both given", hint="give one of them")
    if out.suffix in (".mp4", ".mkv", ".webm"):
        raise UsageError(f"--out {out} looks like a file", hint="give a folder; the video in it is video.mp4")

    console = Console(is_quiet=quiet)
    request = Request(
        backend=backend,
        pocket=pocket,
        file=config,
        sets=set_ or (),
        options=_option_layers(prompt=prompt, cache=cache, size=size, seed=seed, device=device),
    )
    planned: list[Planned] = plan_jobs(request, console, prompts=prompts, seconds=seconds, frames=frames)

    from qvg_cli.commands.make_videos import make_videos

    make_videos(planned, out, console, is_json=json_)


def _option_layers(
    *, prompt: str | None, cache: str | None, size: str | None, seed: int | None, device: str | None
) -> list[Layer]:
    """The settings of options of their own, each with the option's name."""
    from qvg_cli.config_load import Layer

    layers = []
    if prompt is not None:
        layers.append(Layer("PROMPT", {"prompt": prompt}))
    if cache is not None:
        layers.append(Layer("--cache", {"cache": {"preset": cache}}))
    if size is not None:
        height, width = _parse_size(size)
        layers.append(Layer("--size", {"video": {"height": height, "width": width}}))
    if seed is not None:
        layers.append(Layer("--seed", {"seed": seed}))
    if device is not None:
        layers.append(Layer("--device", {"device": device}))
    return layers


def _parse_size(text: str) -> tuple[int, int]:
    height, separator, width = text.lower().partition("x")
    if not (separator and height.isdecimal() and width.isdecimal()):
        raise UsageError(f"--size {text} is not of the form HEIGHTxWIDTH", hint="for example --size 480x832")
    return int(height), int(width)
