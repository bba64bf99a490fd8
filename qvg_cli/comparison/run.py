"""A comparison: every video of every variant, frame against frame, and the report on all of them."""

import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.cache.probe import packs_keys
from qvg_cli.comparison.lpips import PerceptualDistance, load_perceptual_distance
from qvg_cli.comparison.request import BEGUN, Begun, read_begun
from qvg_cli.comparison.spool import FrameSpool, check_space
from qvg_cli.comparison.variants import FinishedVariant, Variant, are_presets, comparison_name, plan_variants
from qvg_cli.comparison.video import compare_video
from qvg_cli.comparison.writer import SIDE_BY_SIDE, ComparisonWriter
from qvg_cli.config.schema import CacheConfig
from qvg_cli.console import Console
from qvg_cli.device import resolve_device
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.opening import read_latents
from qvg_cli.engine.rollout import ChunkResult, Done
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.files import RunDir, slug, unique_names
from qvg_cli.interrupts import hold_interrupts, stop_if_asked
from qvg_cli.models.decoder import redecode
from qvg_cli.models.registry import check_keywords
from qvg_cli.report.run_files import Result, is_finished, read_result
from qvg_cli.report.tables import comparison_tables
from qvg_cli.report.words import short_prompt
from qvg_cli.runs.make import make_video, prompts_heard, warn_of_memory
from qvg_cli.runs.run import Run
from qvg_cli.video.io import check_encoder

FROM_RUNS = "frames as generated, before any lossy encoding"
FROM_LATENTS = "frames decoded again from the latents of the runs, before any lossy encoding"


class SpooledRun(Run):
    """A run of a comparison: its frames are also kept as they are, those that are there already decoded."""

    def __init__(
        self,
        video: Planned,
        folder: RunDir,
        device: torch.device,
        spool: FrameSpool,
        engine: Engine,
        note: Callable[[str], None],
    ) -> None:
        super().__init__(video, folder, device, note)
        self._spool = spool
        self._engine = engine

    def begin(self, cache: KVCache) -> Done | None:
        done = super().begin(cache)
        if done is not None:
            for frames in redecode(self._engine.pipeline.decoder(), done.chunks, done.latents):
                self._spool.write(frames[0].numpy())
        return done

    def add(self, result: ChunkResult) -> None:
        super().add(result)
        self._spool.write(result.frames[0].numpy())

    def suggestion(self) -> str | None:
        return f"resume with: qvg compare --resume {shlex.quote(str(self.folder.path.parents[1]))}"


@dataclass(frozen=True)
class Comparison:
    """What several caches cost and lost beside the first of them; printed, its tables.

    Attributes:
        folder: report.html, compare.json, plots, and for every video a side-by-side MP4 and the run of each
            variant.
        figures: The content of compare.json.
    """

    folder: Path
    figures: Mapping[str, Any]

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def side_by_side(self) -> list[Path]:
        """An MP4 with all variants for every video."""
        return [self.folder / video["side_by_side"] for video in self.figures["videos"]]

    def __str__(self) -> str:
        return comparison_tables(self.figures)

    __repr__ = __str__


def compare(
    engine: Engine,
    caches: Sequence[str],
    *,
    prompt: str | None = None,
    seconds: float | None = None,
    frames: int | None = None,
    segments: int | None = None,
    seed: int | None = None,
    num_seeds: int = 1,
    settings: Mapping[str, Any] | None = None,
    lpips: bool = False,
    out: str | Path = "results",
    progress: bool = False,
    **options: Any,
) -> Comparison:
    """Make the same videos with several caches, from the same noise, and compare their frames.

    Args:
        engine: The loaded model.
        caches: Presets, the baseline first.
        prompt: What the video shows; `None` takes the one of the settings.
        seconds: Length, rounded up to the next that the model can make.
        frames: Length in pixel frames, instead of `seconds`.
        segments: Length in segments after the first clip, for a model that makes such.
        seed: Seed of the noise and the codecs.
        num_seeds: Videos to make, with the seed and those after it.
        settings: Other settings by their dotted names, such as `{"video.fps": 24}`.
        lpips: Measure LPIPS too, by a network that `qvg download lpips` fetches.
        out: The comparison goes to a new folder in `out/compare`.
        progress: Tell on stderr what is done, and show a bar.
        options: Options of the model's family, such as `pose="w-8"` or `window=12`.

    Raises:
        UsageError: The request does not fit the model.
        QvgError: A video failed; the seeds before it are reported on.

    Example:
        >>> comparison = qvg.compare(engine, ["bf16", "int2"], prompt="a red ball on grass", seconds=2)
        >>> print(comparison)
    """
    check_keywords(compare, options)
    if not are_presets(caches):
        raise UsageError("folders of runs are not presets", hint="use the command qvg compare for folders")
    console = Console(is_quiet=not progress)
    variants = plan_variants(
        caches,
        engine.request(prompt, seed=seed, settings=settings, options=options),
        console.note,
        num_seeds=num_seeds,
        seconds=seconds,
        frames=frames,
        segments=segments,
    )
    engine.check(variants[0].videos[0].config)
    with engine.turn:
        return compare_presets(variants, Path(out), console, has_lpips=lpips, engine=engine)


def compare_presets(
    variants: Sequence[Variant],
    out: Path,
    console: Console,
    *,
    has_lpips: bool = False,
    engine: Engine | None = None,
) -> Comparison:
    """Make every video with every variant, one prompt and seed after the other, and compare them.

    Only one variant's cache is held at a time, so the device peak of each is its own. Without an `engine` the
    model is loaded. Where a video fails or is stopped, those before it are reported on.
    """
    check_encoder()
    rows = tuple(zip(*(variant.videos for variant in variants), strict=True))
    begun = Begun(tuple(variant.name for variant in variants), rows, has_lpips)
    resolve_device(begun.rows[0][0].config.device)
    name = comparison_name(begun.names, [row[0] for row in begun.rows])
    with _kept_if_filled(RunDir.create(out, "compare", name).path) as folder:
        begun.write(folder)
        return _compare(begun, folder, console, engine)


def resume_comparison(folder: Path, console: Console) -> Comparison:
    """Go on with a comparison that was cut off: whole runs are decoded anew, the others are made."""
    check_encoder()
    return _compare(read_begun(folder), folder, console)


def _compare(begun: Begun, folder: Path, console: Console, engine: Engine | None = None) -> Comparison:
    first = begun.rows[0]
    config = first[0].config
    device = resolve_device(config.device)
    perceptual = load_perceptual_distance() if begun.has_lpips else None
    _check_space(folder, len(first), first[0])
    if engine is None:
        for name, video in zip(begun.names, first, strict=True):
            warn_of_memory(video, device, console, name=name)
        console.note(f"loading {config.model.name} on {device}, to compare {', '.join(begun.names)}")
        engine = Engine.load_config(config, device)
    else:
        engine = Engine(config, engine.pipeline.with_config(config), device, parallel=engine.parallel)
    writer = ComparisonWriter(
        folder, begun.names, [video.config for video in first], device, FROM_RUNS, is_probed=True
    )
    row_names = unique_names([row[0].name for row in begun.rows], "{}-{}")
    variant_names = unique_names([slug(name) for name in begun.names], "{}-{}")
    try:
        for number, (row, name) in enumerate(zip(begun.rows, row_names, strict=True), start=1):
            if len(begun.rows) > 1:
                seed, prompt = row[0].config.seed, short_prompt(row[0].config.prompt)
                console.note(f"video {number}/{len(begun.rows)}, seed {seed}: {prompt!r}")
            places = [folder / name / variant for variant in variant_names]
            _compare_row(row, places, writer, engine, perceptual, console)
    except BaseException as error:
        if writer.num_videos:
            _keep_report(writer, error)
        raise
    comparison = Comparison(folder, writer.write("complete"))
    (folder / BEGUN).unlink()
    return comparison


def compare_runs(
    variants: Sequence[FinishedVariant], out: Path, device_name: str, console: Console, *, has_lpips: bool
) -> Comparison:
    """Compare finished runs; their frames are decoded from their latents, since their videos are lossy."""
    check_encoder()
    video, names = variants[0].video, [variant.name for variant in variants]
    device = resolve_device(device_name)
    perceptual = load_perceptual_distance() if has_lpips else None
    place = RunDir.create(out, "compare", comparison_name(names, [video]))
    with _kept_if_filled(place.path) as folder:
        _check_space(folder, len(variants), video)
        console.note(f"loading {video.config.model.name} on {device}, to decode the latents of the runs")
        engine = Engine.load_config(video.config, device)
        configs = [variant.video.config for variant in variants]
        writer = ComparisonWriter(folder, names, configs, device, FROM_LATENTS, is_probed=False)
        with _spools(folder, len(variants), video) as spools:
            for variant, spool in zip(variants, spools, strict=True):
                console.note(f"{variant.name}: decoding {variant.run.folder}")
                _decode_run(variant, engine, spool)
            runs = [variant.run for variant in variants]
            _measure(video, folder, runs, spools, writer, engine.device, perceptual, console)
        return Comparison(folder, writer.write("complete"))


def _compare_row(
    row: Sequence[Planned],
    places: Sequence[Path],
    writer: ComparisonWriter,
    engine: Engine,
    perceptual: PerceptualDistance | None,
    console: Console,
) -> None:
    """Make one prompt and seed with every variant, as far as it is not in `places`, and compare them."""
    folder = places[0].parent
    prompt_embeds: Mapping[int, Tensor] | None = None
    folder.mkdir(exist_ok=True)
    with _kept_if_filled(folder), _spools(folder, len(row), row[0]) as spools:
        runs = []
        for name, path, video, spool in zip(writer.names, places, row, spools, strict=True):
            stop_if_asked()
            place = RunDir(path)
            if is_finished(place):
                console.note(f"{name}: decoding {path}")
                _decode_run(FinishedVariant(name, video, read_result(path)), engine, spool)
                runs.append(read_result(path))
                continue
            if prompt_embeds is None:
                with prompts_heard(console):
                    prompt_embeds = engine.encode_prompts(row[0])
            console.note(f"generating with {name}")
            others: dict[str, CacheConfig] = {}
            if not runs and not packs_keys(video.config.cache):
                # The baseline's keys are exact.
                caches = zip(writer.names, (each.config.cache for each in row), strict=True)
                others = {name: cache for name, cache in caches if packs_keys(cache)}
            path.mkdir(exist_ok=True)
            run = SpooledRun(video, place, engine.device, spool, engine, console.note)
            make_video(run, engine, console, prompt_embeds=prompt_embeds, others=others)
            runs.append(read_result(path))
        _measure(row[0], folder, runs, spools, writer, engine.device, perceptual, console)


def _measure(
    video: Planned,
    folder: Path,
    runs: Sequence[Result],
    spools: Sequence[FrameSpool],
    writer: ComparisonWriter,
    device: torch.device,
    perceptual: PerceptualDistance | None,
    console: Console,
) -> None:
    console.note(f"comparing {spools[0].num_frames} frames")
    path, fps = folder / SIDE_BY_SIDE, video.config.video.fps
    if perceptual is not None:
        perceptual.to(device)
    compared = compare_video(writer.names, spools, path, fps=fps, device=device, perceptual=perceptual)
    if perceptual is not None:
        # It is not in the device's peak of the next run.
        perceptual.cpu()
    writer.add(video.config, path, runs, compared)


def _decode_run(variant: FinishedVariant, engine: Engine, spool: FrameSpool) -> None:
    """Decode the latents of a run chunk by chunk, as the rollout that made them did."""
    latents = read_latents(variant.run.folder / "latents.safetensors")
    for frames in redecode(engine.pipeline.decoder(), variant.video.plan.chunks, latents):
        spool.write(frames[0].numpy())


def _check_space(folder: Path, num_variants: int, video: Planned) -> None:
    size = video.config.video
    num_frames = num_variants * video.plan.num_pixel_frames
    check_space(folder, num_frames=num_frames, height=size.height, width=size.width)


@contextmanager
def _spools(folder: Path, count: int, video: Planned) -> Iterator[list[FrameSpool]]:
    """A spool for every variant, gone in the end."""
    size = video.config.video
    with ExitStack() as stack:
        spools = [FrameSpool(folder, height=size.height, width=size.width) for _ in range(count)]
        yield [stack.enter_context(spool) for spool in spools]


@contextmanager
def _kept_if_filled(folder: Path) -> Iterator[Path]:
    """A folder, removed again if nothing was made in it."""
    try:
        yield folder
    finally:
        if all(path.name == BEGUN for path in folder.iterdir()):
            shutil.rmtree(folder)


def _keep_report(writer: ComparisonWriter, error: BaseException) -> None:
    """Report on the videos that were compared before something went wrong."""
    try:
        with hold_interrupts():
            writer.write("partial")
    except QvgError as second:
        error.add_note(str(second))
    else:
        error.add_note(f"partial results: {writer.folder / 'report.html'}")
