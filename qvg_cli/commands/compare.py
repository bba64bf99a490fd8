"""`qvg compare`: from the arguments to variants that are checked whole before anything heavy is loaded."""

import json
from pathlib import Path

import typer

from qvg_cli.commands import options
from qvg_cli.commands.completion import complete_presets_and_runs, complete_runs
from qvg_cli.commands.options import OUTPUT, option, refuse_beside_resume, with_options
from qvg_cli.console import Console, show_data
from qvg_cli.errors import UsageError
from qvg_cli.quick_start import quick_start


@with_options
def compare(
    model: options.Model,
    length: options.Length,
    size: options.Size,
    family: options.Family,
    prompting: options.Prompting,
    output: options.Output,
    variants: list[str] | None = typer.Argument(
        None,
        metavar="A B [C ...]",
        help="KV-cache presets, baseline first; or folders of finished runs.",
        autocompletion=complete_presets_and_runs,
    ),
    prompt: str | None = option("--prompt TEXT", "Text prompt [default: the demo prompt of the model]."),
    seeds: int | None = option(
        "--seeds N", "Generate every prompt with N consecutive seeds [default: 1].", panel="Prompts"
    ),
    lpips: bool = option("--lpips", "Also measure LPIPS; needs qvg download lpips (528 MiB)."),
    resume: Path | None = option(
        "--resume FOLDER",
        "Resume the interrupted comparison in FOLDER.",
        panel="Runs",
        complete=complete_runs,
    ),
    out: Path = option(
        "--out -o FOLDER",
        "Write results to FOLDER/compare/<name>/; existing results are never overwritten.",
        default=Path("results"),
    ),
    json_: bool = option("--json", "Print the content of compare.json, with paths, to stdout.", panel=OUTPUT),
) -> None:
    """Compare KV-cache presets against a baseline.

    Reports memory, speed and quality (PSNR, SSIM, optional LPIPS). All variants use the same prompts, seeds
    and noise; frames are compared before lossy encoding. The results folder gets report.html, compare.json,
    plots and, for every video, a side-by-side MP4 and one run per variant. The path of the report goes to
    stdout, everything else to stderr.
    """
    from qvg_cli.comparison.variants import are_presets, find_variants, named_presets, plan_variants
    from qvg_cli.engine.jobs import check_weights

    console = Console(is_quiet=output.quiet)
    own: dict[str, object] = {"--prompt": prompt, "--seeds": seeds}
    groups = (model, length, size, family, prompting)
    variants = named_presets(variants or [])
    if resume is not None:
        own |= {"--lpips": lpips or None, "variants": variants or None}
        refuse_beside_resume(*groups, own=own)

        from qvg_cli.comparison.run import resume_comparison

        comparison = resume_comparison(resume, console)
    elif not are_presets(variants):
        given = [name for name, value in own.items() if value is not None]
        given += [name for group in groups for name in group.given() if name != "--device"]
        if given:
            raise UsageError(
                f"{given[0]} has no effect on finished runs",
                hint="omit it, or compare presets instead of folders",
            )
        found = find_variants(variants)

        from qvg_cli.comparison.run import compare_runs

        comparison = compare_runs(found, out, model.device or "auto", console, has_lpips=lpips)
    else:
        prompting.check(prompt, length, prompt_option="--prompt")
        wanted = length.asked()
        if seeds is not None and seeds < 1:
            raise UsageError(f"--seeds {seeds} is not a number of videos", hint="use 1 or more")
        for text in model.set_ or ():
            if text.partition("=")[0].strip() == "cache.preset":
                raise UsageError(
                    f"--set {text} cannot change the cache in a comparison",
                    hint="list the preset as an argument instead",
                )
        planned = plan_variants(
            variants,
            model.request(size, family, prompting, prompt=prompt, prompt_option="--prompt"),
            console.note,
            num_seeds=seeds or 1,
            prompts=prompting.prompts,
            **wanted,
            schedule=prompting.schedule,
        )

        check_weights(planned[0].videos[0])
        with quick_start(planned[0].videos[0].config.device):
            from qvg_cli.comparison.run import compare_presets

        comparison = compare_presets(planned, out, console, has_lpips=lpips)
    console.note(f"\n{comparison}\n")
    shown = {"folder": str(comparison.folder), "report": str(comparison.report), **comparison.figures}
    show_data(json.dumps(shown) if json_ else str(comparison.report))
