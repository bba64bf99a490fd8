"""`qvg plan`: will it fit? Answered from the plan alone, without torch and without weights."""

from __future__ import annotations

from typing import Annotated

import typer

from qvg_cli.commands import options
from qvg_cli.console import Console


def plan(
    cache: Annotated[
        list[str] | None,
        typer.Option(metavar="PRESET", help="A cache to plan with. Repeatable.", show_default=False),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|SIZE",
            help='The card it has to fit, such as "RTX 4090" or 24GiB. Without it, that of this machine.',
            show_default=False,
        ),
    ] = None,
    backend: options.Backend = None,
    pocket: options.Pocket = False,
    seconds: options.Seconds = None,
    frames: options.PixelFrames = None,
    segments: options.Segments = None,
    size: options.Size = None,
    pose: options.Pose = None,
    pad_pose: options.PadPose = None,
    image: options.Image = None,
    context: options.Context = None,
    window: options.Window = None,
    sink: options.Sink = None,
    device: options.Device = None,
    config: options.ConfigFile = None,
    set_: options.Sets = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one object with every chunk, in bytes.")
    ] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Tell what a video needs before it is made: chunks, disk, device memory over time.

    The cache is counted to the byte; the rest of the device's memory is an estimate. For a card it says
    whether the video fits, and if not, the first settings that would. Nothing is loaded.
    """
    from dataclasses import replace

    from qvg_cli.commands.show_plan import show_plan
    from qvg_cli.config.load import Request
    from qvg_cli.engine.jobs import plan_jobs

    del debug
    options.check_length_options(seconds, frames, segments)
    request = Request(
        backend=backend,
        pocket=pocket,
        file=config,
        sets=set_ or (),
        options=options.option_layers(
            prompt=None,
            cache=None,
            size=size,
            seed=None,
            device=device,
            pose=pose,
            pad_pose=pad_pose,
            image=image,
            context=context,
            window=window,
            sink=sink,
        ),
    )
    arms = []
    for index, preset in enumerate(cache or [None]):
        # First of all: what is set about the cache, such as cache.span_tokens, changes every preset.
        sets = request.sets if preset is None else (f"cache.preset={preset}", *request.sets)
        arms += plan_jobs(
            replace(request, sets=sets),
            # What is said of the video is said once.
            Console(is_quiet=quiet or index > 0).note,
            prompts=None,
            seconds=seconds,
            frames=frames,
            segments=segments,
            is_made=False,
        )
    show_plan(arms, card, num_videos=1, is_json=json_)
