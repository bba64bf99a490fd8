"""A folder that is written while a video is made: what was made survives whatever stops it.

Guarantee: a process that is killed loses at most the chunk in hand and the one that is being written; one
that fails, or is stopped, loses only the chunk in hand.
"""

import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save
from torch import Tensor

from qvg_cli import plotting
from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.device import attention_words
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.rollout import ChunkResult, Done
from qvg_cli.errors import QvgError
from qvg_cli.files import RunDir, write_text, write_whole
from qvg_cli.logs import timed
from qvg_cli.models.registry import family_of
from qvg_cli.report.html import run_page
from qvg_cli.report.plotter import Plotter
from qvg_cli.report.provenance import provenance
from qvg_cli.report.run_files import read_result
from qvg_cli.runs.checkpoint import VIDEO, Checkpoint, ChunkRecord
from qvg_cli.runs.identity import identify
from qvg_cli.runs.summary import Summary, Times, chunk_line
from qvg_cli.video.io import Frames, VideoWriter
from qvg_cli.video.parts import append_parts, join_parts

LOG = logging.getLogger(__name__)
_MANY_PARTS = 16
"""So many parts, all but the last two, are joined while the last but one is made."""
_PLOTTER_CHUNKS = 6
"""So many chunks before the end the process that draws the plot begins: it takes 1 to 2 s to import."""


class Run:
    """One run while it is made, into a folder of its own. Its checkpoint there is resumed.

    Args:
        times: Counts from the moment from which the user waits for this video; `None` for now.

    Attributes:
        summary: What the run has made so far.
    """

    def __init__(
        self,
        video: Planned,
        folder: RunDir,
        device: torch.device,
        note: Callable[[str], None],
        times: Times | None = None,
    ) -> None:
        self.video = video
        self.folder = folder
        self.device = device
        self.summary = Summary(video, device, times or Times())
        self._note = note
        self._details = family_of(video.config).run_details(video.config)
        self._checkpoint: Checkpoint | None = None
        if folder.state.is_dir():
            self._checkpoint = Checkpoint.open(folder.state, identify(video.config, device.type), note)
        self._cache: KVCache | None = None
        self._clip: VideoWriter | None = None
        # One chunk at most is under way: whoever hands over the next one waits for it.
        self._writer = ThreadPoolExecutor(1, "writer")
        self._writing: Future[ChunkRecord] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._has_clip = False
        self._num_previewed = 0
        self._joined: tuple[Path, int] | None = None
        self._plotter: Plotter | None = None
        self._earlier_seconds = 0.0

    def begin(self, cache: KVCache) -> Done | None:
        """Write what is known before the first chunk, or fill the empty `cache` from the checkpoint."""
        self._cache, done = cache, None
        if self._checkpoint is None:
            self._write_config()
            identity = identify(self.video.config, self.device.type)
            self._checkpoint = Checkpoint.create(self.folder.state, identity)
        else:
            # The checkpoint has all that it shows.
            self.folder.preview.unlink(missing_ok=True)
            records, done = self._checkpoint.restore(self.video.plan, cache, self.device, self._note)
            self.summary.records = records
        if done is not None:
            self._earlier_seconds = self.summary.seconds = records[-1].seconds
            self.summary.resumed_after = len(records)
            self._note(f"resuming after chunk {len(records)} of {len(self.video.plan.chunks)}")
        self.summary.times.begin_loop()
        return done

    def show_clip(self, frames: Frames) -> None:
        """Begin the video with frames of a clip, `[n, height, width, 3]` uint8.

        They are written anew by every process: what they come from is there as long as the run is.
        """
        if self._clip is None:
            height, width = frames.shape[1:3]
            self._clip = VideoWriter(
                self._clip_path, height=height, width=width, fps=self.video.config.video.fps
            )
        self._clip.write(frames)
        self.summary.num_clip += len(frames)

    def add(self, result: ChunkResult) -> None:
        """Hand a chunk over to be written; it is safe when the next `add` or `finish` returns."""
        assert self._checkpoint is not None
        assert self._cache is not None
        with self.summary.times.measure("writing"):
            self._wait()
            seconds = self._earlier_seconds + self.summary.times.loop_seconds
            record, blocks = self._checkpoint.describe(result, self.video.plan, self._cache, seconds=seconds)
            copies = _copy_to_host({**blocks, "latents": result.latents}, self._stream)
            earlier = tuple(self.summary.records)
            self._writing = self._writer.submit(
                self._write, self._checkpoint, record, earlier, copies, result
            )
            self.summary.records.append(record)
            self.summary.seconds = self._earlier_seconds + self.summary.times.loop_seconds

    def finish(self, status: str) -> None:
        """Write video, latents and reports; a run that made nothing leaves nothing.

        The checkpoint stays as long as something is missing; every file is tried.
        """
        summary, run, checkpoint = self.summary, self.folder, self._checkpoint
        if summary.status != "running":
            return
        summary.status = status
        failures: list[Exception] = []
        began = time.perf_counter()

        def attempt(write: Callable[[], object]) -> None:
            try:
                write()
            except Exception as error:
                failures.append(error)

        with summary.times.measure("writing"):
            attempt(self._wait)
            if not summary.records:
                if checkpoint is not None:
                    checkpoint.remove()
                run.discard()
                if failures:
                    raise failures[0]
                return
            assert checkpoint is not None
            is_whole = status == "complete" and not failures

            def save_latents(path: Path) -> None:
                # Not save_file: it makes files that only their owner can read.
                path.write_bytes(save({"latents": checkpoint.read_latents(summary.records).contiguous()}))

            plots: dict[Path, Callable[[Path | BinaryIO], object]] = {
                run.plot: summary.report.save_plot,
                **{run.path / name: draw for name, draw in self._details.plots.items()},
            }

            @cache
            def drawn() -> Mapping[Path, bytes]:
                return {} if self._plotter is None else self._plotter.draw(plots)

            def save_plot(plot: Path, path: Path) -> None:
                if (png := drawn().get(plot)) is None:
                    plots[plot](path)
                else:
                    path.write_bytes(png)

            def write_files() -> None:
                # ffmpeg copies while the other files are written.
                with ThreadPoolExecutor(2) as pool:
                    pool.submit(attempt, lambda: self._join_video(checkpoint))
                    pool.submit(attempt, lambda: write_whole(run.latents, save_latents))
                    for path in plots:
                        attempt(partial(write_whole, path, partial(save_plot, path)))

            if self._plotter is None:
                # Before other threads write beside it.
                attempt(plotting.load)
            write_files()
            if failures and is_whole:
                # Where the disk is full, the history has their room.
                checkpoint.drop_history()
                failures.clear()
                write_files()
        summary.times.end_loop()
        summary.seconds = self._earlier_seconds + summary.times.loop_seconds
        if failures:
            summary.status = "failed"

        def write_memory() -> None:
            write_text(run.memory, json.dumps(summary.to_json(), indent=1) + "\n")

        with ThreadPoolExecutor(1) as pool:
            if is_whole:
                # Not before: what is large would be synced as slowly as gigabytes are removed.
                pool.submit(attempt, checkpoint.drop_history)
            attempt(write_memory)
            # The last: it shows what the other files hold.
            attempt(lambda: write_text(run.page, run_page(read_result(run.path))))
            LOG.info("video and reports: %.3f s", time.perf_counter() - began)
        if failures:
            summary.status = "failed"
            attempt(write_memory)
            checkpoint.close()
            raise failures[0]
        if status == "complete":
            checkpoint.remove()
        else:
            checkpoint.close()

    def close(self) -> None:
        """Leave the run to other processes, with the chunks that were handed over."""
        self._wait()
        if self._checkpoint is not None:
            self._checkpoint.close()

    def kept(self) -> str:
        """What is left of a run that ended early."""
        kept = self.summary.kept()
        place = self.folder.video if self.folder.video.exists() else self.folder.state
        return f"{kept} are in {place}" if self.summary.num_frames else kept

    def suggestion(self) -> str | None:
        """How to resume a run that ended early; `None` if nothing is left of it."""
        if not self.folder.state.exists():
            return None
        return f"resume with: qvg generate --resume {shlex.quote(str(self.folder.path))}"

    def figures(self) -> dict[str, Any]:
        """Paths and figures for `--json`."""
        run = self.folder
        return {
            "schema": 1,
            **self.summary.about(),
            "folder": str(run.path),
            "video": str(run.video),
            "latents": str(run.latents),
            "memory": str(run.memory),
            "plot": str(run.plot),
            "report": str(run.page),
            "config": str(run.config),
            **self.summary.report.summary(),
        }

    @property
    def _clip_path(self) -> Path:
        return self.folder.state / "clip.mp4"

    def _wait(self) -> None:
        """Let the chunk that is being written become whole."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            self.summary.records[-1] = writing.result()
        except BaseException:
            self.summary.records.pop()
            raise

    def _write(
        self,
        checkpoint: Checkpoint,
        record: ChunkRecord,
        earlier: Sequence[ChunkRecord],
        copies: Callable[[], dict[str, Tensor]],
        result: ChunkResult,
    ) -> ChunkRecord:
        """Write a chunk after those `earlier`, on the writer's thread, as soon as its pixels are there."""
        fps = self.video.config.video.fps
        frames = result.frames[0].numpy()
        self.summary.times.add(result)
        LOG.info("%s", chunk_line(result))
        with timed("chunk written", logging.DEBUG):
            blocks = copies()
            latents = blocks.pop("latents")
            record = checkpoint.save(record, latents, blocks, frames, fps=fps)
            parts = self._video_parts(checkpoint, [*earlier, record])
            num_before = self.summary.num_clip + sum(each.num_frames for each in earlier)
            num_left = len(self.video.plan.chunks) - record.chunk - 1
            if num_left and (new := parts[self._num_previewed :]):
                append_parts(
                    new, self.folder.preview, num_before=num_before if self._num_previewed else 0, fps=fps
                )
                self._num_previewed = len(parts)
        if num_left == 2 and len(parts) >= _MANY_PARTS:
            self._join_early(parts, checkpoint.folder / "joined.mp4", num_before + record.num_frames)
        if 0 < num_left <= _PLOTTER_CHUNKS and self._plotter is None and "matplotlib" not in sys.modules:
            # Without it, plots are drawn here.
            with suppress(OSError):
                self._plotter = Plotter()
        return record

    def _join_early(self, parts: Sequence[Path], joined: Path, num_frames: int) -> None:
        """Join all parts but the last two: ffmpeg looks into every one."""
        try:
            join_parts(parts, joined, num_frames=num_frames)
            self._joined = joined, len(parts)
        except QvgError as error:
            # It only saves time. A disk may have room for the video once the preview is gone.
            LOG.info("no parts are joined before the end: %s", error)

    def _video_parts(self, checkpoint: Checkpoint, records: Sequence[ChunkRecord]) -> list[Path]:
        """The files that together are the video of `records`."""
        if self._clip is not None:
            self._clip.finish()
            self._clip, self._has_clip = None, True
        parts = [self._clip_path] if self._has_clip else []
        return parts + [checkpoint.path(each.chunk, VIDEO) for each in records if each.num_frames]

    def _join_video(self, checkpoint: Checkpoint) -> None:
        parts = self._video_parts(checkpoint, self.summary.records)
        if self._joined is not None:
            joined, num_joined = self._joined
            parts = [joined, *parts[num_joined:]]
        if parts:
            join_parts(parts, self.folder.video, num_frames=self.summary.num_frames)
        self.folder.preview.unlink(missing_ok=True)

    def _write_config(self) -> None:
        values = {
            **self.video.config.model_dump(mode="json"),
            **({"details": self._details.about} if self._details.about else {}),
            "provenance": {
                **provenance(self.device),
                "attention": attention_words(self.video.config, self.device),
            },
        }
        write_text(self.folder.config, format_yaml(values))


def _copy_to_host(
    tensors: Mapping[str, Tensor], stream: torch.cuda.Stream | None
) -> Callable[[], dict[str, Tensor]]:
    """Begin to copy tensors to the host, and return a function that gives the copies once they are whole.

    Args:
        tensors: Not changed any more; their memory may be given to others as soon as nothing here needs it.
        stream: Copies beside what the device computes, into pinned memory; `None` where the tensors are on
            the host, which are taken as they are.
    """
    if stream is None:
        return lambda: dict(tensors)
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        copies = {name: tensor.to("cpu", non_blocking=True) for name, tensor in tensors.items()}
        for tensor in tensors.values():
            tensor.record_stream(stream)
        copied = torch.cuda.Event(blocking=True)
        copied.record(stream)

    def whole() -> dict[str, Tensor]:
        copied.synchronize()
        return copies

    return whole
