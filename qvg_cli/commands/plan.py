"""`qvg plan`: will it fit? Answered from the plan alone, without torch and without weights."""

from __future__ import annotations

from typing import Annotated

import typer

from qvg_cli.commands.completion import complete_cards, complete_presets
from qvg_cli.commands.options import (
    FamilyOptions,
    LengthOptions,
    ModelOptions,
    OutputOptions,
    SizeOptions,
    with_options,
)
from qvg_cli.console import Console


@with_options
def plan(
    model: ModelOptions,
    length: LengthOptions,
    size: SizeOptions,
    family: FamilyOptions,
    output: OutputOptions,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRESET",
            help="A cache to plan with. Repeatable.",
            show_default=False,
            autocompletion=complete_presets,
        ),
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|SIZE",
            help='The card it has to fit, such as "RTX 4090" or 24GiB. Without it, that of this machine.',
            show_default=False,
            autocompletion=complete_cards,
        ),
    ] = None,
    gpus: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Cards that make the video together, as torchrun starts them.",
        ),
    ] = 1,
    json_: Annotated[
        bool, typer.Option("--json", help="Print one object with every chunk, in bytes.")
    ] = False,
) -> None:
    """Tell what a video needs before it is made: chunks, disk, device memory over time.

    The cache is counted to the byte; the rest of the device's memory is an estimate. For a card it says
    whether the video fits, and if not, the first settings that would. Nothing is loaded.
    """
    from qvg_cli.commands.show_plan import show_plan
    from qvg_cli.engine.jobs import plan_caches

    length.check()
    videos = plan_caches(
        model.request(size, family),
        cache or [None],
        Console(is_quiet=output.quiet).note,
        seconds=length.seconds,
        frames=length.frames,
        segments=length.segments,
        is_made=False,
    )
    show_plan([video for (video,) in videos], card, num_videos=1, is_json=json_, num_gpus=gpus)
