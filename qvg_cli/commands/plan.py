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
            help="KV-cache preset to plan for (repeatable) [default: int2].",
            show_default=False,
            autocompletion=complete_presets,
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            "--card",
            metavar="NAME|SIZE",
            help='GPU to plan for, e.g. "RTX 4090" or 24GiB [default: the GPU of this machine].',
            show_default=False,
            autocompletion=complete_cards,
        ),
    ] = None,
    gpus: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Number of GPUs that share the video, as started by torchrun."),
    ] = 1,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the plan as JSON, with every chunk, in bytes.")
    ] = False,
) -> None:
    """Estimate memory and disk for a video without generating it.

    The size of the KV cache is exact, other GPU memory is estimated. Says whether the video fits the GPU and,
    if not, which settings would. Needs no weights and no GPU.
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
    show_plan([video for (video,) in videos], gpu, num_videos=1, is_json=json_, num_gpus=gpus)
