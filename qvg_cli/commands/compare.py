"""`qvg compare`: from the arguments to variants that are checked whole before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from qvg_cli.commands import options
from qvg_cli.console import Console
from qvg_cli.errors import UsageError


def compare(
    variants: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="A B [C ...]",
            help="Presets of the cache, the baseline first; or folders of finished runs.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What the video shows. Without it, the demo prompt.", show_default=False
        ),
    ] = None,
    prompts: options.Prompts = None,
    seed: options.Seed = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Make every prompt with N seeds, the seed and those after it.",
            show_default=False,
        ),
    ] = None,
    backend: options.Backend = None,
    pocket: options.Pocket = False,
    seconds: options.Seconds = None,
    frames: options.PixelFrames = None,
    size: options.Size = None,
    pose: options.Pose = None,
    pad_pose: options.PadPose = None,
    image: options.Image = None,
    context: options.Context = None,
    window: options.Window = None,
    sink: options.Sink = None,
    lpips: Annotated[
        bool,
        typer.Option(
            "--lpips",
            help="Also measure LPIPS, by a network that qvg download lpips fetches (528 MiB).",
        ),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Go on with the comparison in FOLDER, which was cut off.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Results go to FOLDER/compare/<name>/, never over old ones."),
    ] = Path("results"),
    device: options.Device = None,
    config: options.ConfigFile = None,
    set_: options.Sets = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print the content of compare.json and the paths to stdout.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show what presets of the cache cost and lose beside the first of them.

    All variants have the same prompts, seeds and noise; frames are compared before lossy coding. The folder gets
    report.html, compare.json, plots, and for every video a side-by-side MP4 and the run of each variant. The
    report's path goes to stdout, everything else to stderr.
    """
    from qvg_cli.comparison.variants import are_presets, find_variants, plan_variants
    from qvg_cli.config.load import Request

    del verbose, debug
    console = Console(is_quiet=quiet)
    makes_videos = {
        "--prompt": prompt, "--prompts": prompts, "--seed": seed, "--seeds": seeds, "--backend": backend,
        "--pocket": pocket or None, "--seconds": seconds, "--frames": frames, "--size": size,
        "--pose": pose, "--pad-pose": pad_pose, "--image": image, "--context": context,
        "--window": window, "--sink": sink,
        "--config": config, "--set": set_ or None,
    }  # fmt: skip
    if resume is not None:
        options.refuse_beside_resume(
            {**makes_videos, "--lpips": lpips or None, "--device": device, "arms": variants or None}
        )

        from qvg_cli.comparison.run import resume_comparison

        resume_comparison(resume, console, is_json=json_)
        return
    if not are_presets(variants or []):
        _refuse_given(makes_videos)
        found = find_variants(variants or [])

        from qvg_cli.comparison.run import compare_runs

        compare_runs(found, out, device or "auto", console, has_lpips=lpips, is_json=json_)
        return
    if prompt is not None and prompts is not None:
        raise UsageError("--prompt and --prompts were both given", hint="put the prompt into the file")
    options.check_length_options(seconds, frames)
    if seeds is not None and seeds < 1:
        raise UsageError(f"--seeds {seeds} is no number of videos", hint="give 1 or more")
    _check_sets(set_ or ())
    request = Request(
        backend=backend,
        pocket=pocket,
        file=config,
        sets=set_ or (),
        options=options.option_layers(
            prompt=prompt,
            cache=None,
            size=size,
            seed=seed,
            device=device,
            pose=pose,
            pad_pose=pad_pose,
            image=image,
            context=context,
            window=window,
            sink=sink,
            prompt_option="--prompt",
        ),
    )
    planned = plan_variants(
        variants or [], request, console, prompts=prompts, seconds=seconds, frames=frames, num_seeds=seeds or 1
    )

    from qvg_cli.comparison.run import compare_presets

    compare_presets(planned, out, console, has_lpips=lpips, is_json=json_)


def _refuse_given(makes_videos: Mapping[str, object]) -> None:
    given = [name for name, value in makes_videos.items() if value is not None]
    if given:
        raise UsageError(
            f"{given[0]} has no effect on finished runs",
            hint="leave it out, or compare presets instead of folders",
        )


def _check_sets(sets: Sequence[str]) -> None:
    for text in sets:
        if text.partition("=")[0].strip() == "cache.preset":
            raise UsageError(f"--set {text}: the presets are the variants", hint="name it as an variant instead")
