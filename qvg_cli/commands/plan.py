"""`qvg plan`: will it fit? Answered from the plan alone, without torch and without weights."""

import json

from qvg_cli.commands import options
from qvg_cli.commands.completion import complete_cards, complete_presets
from qvg_cli.commands.options import option, with_options
from qvg_cli.console import Console, show_data


@with_options
def plan(
    model: options.Model,
    length: options.Length,
    size: options.Size,
    family: options.Family,
    output: options.Output,
    cache: list[str] | None = option(
        "--cache PRESET",
        "KV-cache preset to plan for (repeatable) [default: int2].",
        complete=complete_presets,
    ),
    gpu: str | None = option(
        "--gpu --card NAME|SIZE",
        'GPU to plan for, e.g. "RTX 4090" or 24GiB [default: the GPU of this machine].',
        complete=complete_cards,
    ),
    gpus: int = option(
        "--gpus N", "Number of GPUs that share the video, as started by torchrun.", default=1, min=1
    ),
    json_: bool = option("--json", "Print the plan as JSON, with every chunk, in bytes."),
) -> None:
    """Estimate memory and disk for a video without generating it.

    The size of the KV cache is exact, other GPU memory is estimated. Says whether the video fits the GPU and,
    if not, which settings would. Needs no weights and no GPU.
    """
    from qvg_cli.engine.jobs import plan_caches
    from qvg_cli.report.forecasts import make_plan

    videos = plan_caches(
        model.request(size, family),
        cache or [None],
        Console(is_quiet=output.quiet).note,
        **length.asked(),
        is_made=False,
    )
    plan = make_plan([video for (video,) in videos], gpu, num_gpus=gpus)
    show_data(json.dumps(plan.to_json()) if json_ else str(plan))
