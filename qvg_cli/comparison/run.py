"""The comparison itself: every video of every variant, frame against frame, and the report on all of them."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.runs.make import make_video, prompts_heard, warn_of_memory
from qvg_cli.report.run_files import is_finished
from qvg_cli.comparison.lpips import PerceptualDistance, load_perceptual_distance
from qvg_cli.comparison.request import BEGUN, Begun, read_begun
from qvg_cli.comparison.spool import FrameSpool, check_space
from qvg_cli.comparison.variants import Variant, FinishedVariant, comparison_name
from qvg_cli.comparison.video import compare_video
from qvg_cli.comparison.writer import SIDE_BY_SIDE, ComparisonWriter
from qvg_cli.console import Console, show_data
from qvg_cli.device import resolve_device
from qvg_cli.engine.engine import Engine
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.rollout import ChunkResult, Done
from qvg_cli.errors import QvgError
from qvg_cli.interrupts import hold_interrupts, stop_if_asked
from qvg_cli.models.decoder import redecode
from qvg_cli.report.run_files import Result, read_result
from qvg_cli.report.tables import comparison_tables
from qvg_cli.report.words import short_prompt
from qvg_cli.files import RunDir
from qvg_cli.runs.run import Run
from qvg_cli.video.io import check_encoder

FROM_RUNS = "frames as the model made them, before any lossy coding"
FROM_LATENTS = "frames decoded anew from the latents of the runs, before any lossy coding"


class SpooledRun(Run):
    """A run of a comparison: its frames are also kept as they are.

    Args:
        engine: Decodes the chunks that are there already.
        note: Takes a line for the user.
    """

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
        """See `Run.begin`."""
        done = super().begin(cache)
        if done is not None:
            for frames in redecode(self._engine.pipeline.decoder(), done.chunks, done.latents):
                self._spool.write(frames[0].numpy())
        return done

    def add(self, result: ChunkResult) -> None:
        """See `Run.add`."""
        super().add(result)
        self._spool.write(result.frames[0].numpy())

    def suggestion(self) -> str | None:
        """See `Run.suggestion`; the whole comparison is resumed."""
        return resume_hint(self.folder.path.parents[1])


def resume_hint(folder: Path) -> str:
    """How to go on with a comparison."""
    return f"go on with: qvg compare --resume {shlex.quote(str(folder))}"


def compare_presets(
    variants: Sequence[Variant], out: Path, console: Console, *, has_lpips: bool, is_json: bool
) -> None:
    """Make every video with every variant, one prompt and seed after the other, and compare them.

    The model is loaded once; only one variant's cache is held at a time, so the device peak of each is its own.

    Raises:
        QvgError: A video failed or was stopped; the prompts and seeds before it are reported on.
    """
    check_encoder()
    rows = tuple(zip(*(variant.videos for variant in variants), strict=True))
    begun = Begun(tuple(variant.name for variant in variants), rows, has_lpips)
    resolve_device(begun.rows[0][0].config.device)
    name = comparison_name(begun.names, [row[0] for row in begun.rows])
    with _new_folder(out / "compare", name) as folder:
        begun.write(folder)
        _compare(begun, folder, console, is_json=is_json)


def resume_comparison(folder: Path, console: Console, *, is_json: bool) -> None:
    """Go on with a comparison that was cut off: whole runs are decoded anew, the others are made.

    Raises:
        UsageError: There is nothing to go on with.
        QvgError: As `compare_presets`.
    """
    check_encoder()
    _compare(read_begun(folder), folder, console, is_json=is_json)


def _compare(begun: Begun, folder: Path, console: Console, *, is_json: bool) -> None:
    first = begun.rows[0]
    config = first[0].config
    device = resolve_device(config.device)
    perceptual = load_perceptual_distance() if begun.has_lpips else None
    _check_space(folder, len(first), first[0])
    for name, video in zip(begun.names, first, strict=True):
        warn_of_memory(video, device, console, name=name)
    console.note(f"loading {config.model.name} on {device}, to compare {', '.join(begun.names)}")
    engine = Engine.load_config(config, device)
    writer = ComparisonWriter(folder, begun.names, [video.config for video in first], device, FROM_RUNS)
    try:
        for number, (row, name) in enumerate(zip(begun.rows, begun.row_folders, strict=True), start=1):
            if len(begun.rows) > 1:
                seed, prompt = row[0].config.seed, short_prompt(row[0].config.prompt)
                console.note(f"video {number}/{len(begun.rows)}, seed {seed}: {prompt!r}")
            _compare_row(row, folder / name, begun.variant_folders, writer, engine, device, perceptual, console)
    except BaseException as error:
        _keep_report(writer, error)
        raise
    _report(writer, console, is_json=is_json)
    (folder / BEGUN).unlink()


def compare_runs(
    variants: Sequence[FinishedVariant],
    out: Path,
    device_name: str,
    console: Console,
    *,
    has_lpips: bool,
    is_json: bool,
) -> None:
    """Compare finished runs; their frames are decoded from their latents, since their videos are lossy.

    Raises:
        QvgError: Latents cannot be read.
    """
    check_encoder()
    video = variants[0].video
    device = resolve_device(device_name)
    names = [variant.name for variant in variants]
    perceptual = load_perceptual_distance() if has_lpips else None
    with _new_folder(out / "compare", comparison_name(names, [video])) as folder:
        _check_space(folder, len(variants), video)
        console.note(f"loading {video.config.model.name} on {device}, to decode the latents of the runs")
        engine = Engine.load_config(video.config, device)
        writer = ComparisonWriter(folder, names, [variant.video.config for variant in variants], device, FROM_LATENTS)
        with _spools(folder, len(variants), video) as spools:
            for variant, spool in zip(variants, spools, strict=True):
                console.note(f"{variant.name}: decoding {variant.run.folder}")
                _decode_run(variant, engine, spool)
            runs = [variant.run for variant in variants]
            _measure(video, folder, runs, spools, writer, device, perceptual, console)
        _report(writer, console, is_json=is_json)


def _compare_row(
    row: Sequence[Planned],
    folder: Path,
    variant_folders: Sequence[str],
    writer: ComparisonWriter,
    engine: Engine,
    device: torch.device,
    perceptual: PerceptualDistance | None,
    console: Console,
) -> None:
    """Make one prompt and seed with every variant, as far as it is not there, and compare what was made."""
    prompt_embeds: Mapping[int, Tensor] | None = None
    with _kept_if_filled(folder), _spools(folder, len(row), row[0]) as spools:
        runs = []
        for name, variant_folder, video, spool in zip(writer.names, variant_folders, row, spools, strict=True):
            stop_if_asked()
            place = RunDir(folder / variant_folder)
            if is_finished(place):
                console.note(f"{name}: decoding {place.path}")
                _decode_run(FinishedVariant(name, video, read_result(place.path)), engine, spool)
                runs.append(read_result(place.path))
                continue
            if prompt_embeds is None:
                with prompts_heard(console):
                    prompt_embeds = engine.encode_prompts(row[0])
            console.note(f"making it with {name}")
            place.path.mkdir(exist_ok=True)
            run = SpooledRun(video, place, device, spool, engine, console.note)
            make_video(run, engine, console, is_shown=False, prompt_embeds=prompt_embeds)
            runs.append(read_result(place.path))
        _measure(row[0], folder, runs, spools, writer, device, perceptual, console)


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
    path = variant.run.folder / "latents.safetensors"
    try:
        latents = load_file(path)["latents"]
    except (OSError, KeyError, SafetensorError) as error:
        raise QvgError(f"cannot read {path}: {error}") from error
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
def _new_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder, removed again if nothing was made in it."""
    folder = RunDir.create(parent, ".", name).path
    try:
        yield folder
    finally:
        if all(path.name == BEGUN for path in folder.iterdir()):
            shutil.rmtree(folder)


@contextmanager
def _kept_if_filled(folder: Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _report(writer: ComparisonWriter, console: Console, *, is_json: bool) -> None:
    content = writer.write("complete")
    console.note("\n" + comparison_tables(content) + "\n")
    page = writer.folder / "report.html"
    shown = {"folder": str(writer.folder), "report": str(page), **content}
    show_data(json.dumps(shown) if is_json else str(page))


def _keep_report(writer: ComparisonWriter, error: BaseException) -> None:
    """Report on the videos that were compared before something went wrong."""
    if not writer.num_videos:
        return
    try:
        with hold_interrupts():
            writer.write("partial")
    except QvgError as second:
        error.add_note(str(second))
    else:
        error.add_note(f"what was compared until then is in {writer.folder / 'report.html'}")
