"""One run while it is made: its frames go to the video as they come, its reports are written in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from qvg_cli.backends.registry import run_details
from qvg_cli.cache.accounting import MemorySample, total
from qvg_cli.cache_settings import cache_label
from qvg_cli.commands.jobs import Planned
from qvg_cli.errors import QvgError
from qvg_cli.plan import pixel_frames
from qvg_cli.report.html import run_page
from qvg_cli.report.memory import MemoryReport
from qvg_cli.report.provenance import provenance
from qvg_cli.report.run_files import read_result
from qvg_cli.report.words import describe_bytes, mib_text
from qvg_cli.rollout import ChunkResult
from qvg_cli.run_dir import RunDir, write_whole
from qvg_cli.video.io import Frames, VideoWriter
from qvg_cli.yaml_text import format_yaml


class Recording:
    """What one run has made so far, and the files it leaves.

    Attributes:
        samples: The memory of every chunk made so far.
        status: "running", then "complete", "interrupted" or "failed".
    """

    def __init__(self, video: Planned, run: RunDir, device: torch.device) -> None:
        self.video = video
        self.samples: list[MemorySample] = []
        self.status = "running"
        self._run = run
        self._details = run_details(video.config)
        self._device = device
        self._latents: list[Tensor] = []
        self._chunk_seconds: list[float] = []
        self._writer: VideoWriter | None = None
        self._num_clip = 0
        self._num_given = 0
        self._started = 0.0
        self._seconds = 0.0

    @property
    def num_frames(self) -> int:
        """Pixel frames written so far."""
        return self._writer.num_frames if self._writer else 0

    @property
    def num_made(self) -> int:
        """Of the pixel frames written, those that were not there before."""
        return max(0, self.num_frames - self._num_given)

    def begin(self) -> None:
        """Write what is known before the first chunk, and open the video."""
        self._started = time.perf_counter()
        config = self.video.config
        values = {
            **config.model_dump(mode="json"),
            **({"details": self._details.about} if self._details.about else {}),
            "provenance": provenance(self._device),
        }
        write_whole(self._run.config, lambda path: _write_text(path, format_yaml(values)))
        self._writer = VideoWriter(
            self._run.video, height=config.video.height, width=config.video.width, fps=config.video.fps
        )

    def show_clip(self, frames: Frames) -> None:
        """Begin the video with frames of a clip, `[n, height, width, 3]` uint8."""
        assert self._writer is not None
        self._writer.write(frames)
        self._num_clip += len(frames)
        self._num_given += len(frames)

    def add(self, result: ChunkResult) -> None:
        """Take in one chunk: pixels go to the file at once."""
        assert self._writer is not None
        self._writer.write(result.frames[0].numpy())
        if not result.chunk.makes:
            self._num_given += result.frames.shape[1]
        self._latents.append(result.latents.cpu())
        self.samples.append(result.memory)
        self._chunk_seconds.append(round(result.seconds, 4))
        self._seconds = time.perf_counter() - self._started

    def finish(self, status: str) -> None:
        """Close the video and write latents and reports; a run that made nothing leaves nothing.

        Raises:
            QvgError: A file could not be written; the others were tried all the same.
        """
        if self.status != "running":
            return
        self.status = status
        if not self.samples:
            if self._writer is not None:
                self._writer.finish()
            self._run.discard()
            return
        assert self._writer is not None
        report = self._report()
        failures = []
        writes: list[Callable[[], None]] = [
            self._writer.finish,
            lambda: write_whole(self._run.latents, self._save_latents),
            lambda: write_whole(self._run.memory, lambda path: self._save_memory(report, path)),
            lambda: write_whole(self._run.plot, report.save_plot),
        ]
        for name, write_file in self._details.files.items():
            writes.append(partial(write_whole, self._run.path / name, write_file))
        # The last: it shows what the other files hold.
        writes.append(lambda: write_whole(self._run.page, self._save_page))
        for write in writes:
            try:
                write()
            except QvgError as error:
                failures.append(error)
        if failures:
            self.status = "failed"
            raise failures[0]

    def status_line(self) -> str:
        """How the run goes, in a few words."""
        sample = self.samples[-1]
        cache = describe_bytes(total(sample.end_bytes), sample.bf16_end_bytes)
        rate = f"{self.num_made / self._seconds:.1f} frames/s" if self.num_made else "given"
        return f"{self.num_frames} frames, {rate}, cache {cache}"

    def summary(self) -> str:
        """How the run went, in one line."""
        lasts = self.num_frames / self.video.config.video.fps
        rate = self.num_made / self._seconds
        made = f", {self.num_made} of them new," if self._num_given else ""
        return (
            f"{self.num_frames} frames ({lasts:.2f} s){made} in {self._seconds:.1f} s, {rate:.1f} frames/s; "
            f"cache at its peak {self._report().peak_text()} for the same frames"
        )

    def kept(self) -> str:
        """What is left of a run that ended early."""
        if not self.num_frames:
            return "no frame was kept"
        lasts = self.num_frames / self.video.config.video.fps
        return f"the first {self.num_frames} frames ({lasts:.2f} s) are in {self._run.video}"

    def memory_note(self) -> str:
        """What the cache and the device held when memory ran out."""
        held = mib_text(total(self.samples[-1].end_bytes)) if self.samples else "0"
        note = f"the cache held {held} MiB"
        if self._device.type == "cuda":
            note += f" of {mib_text(torch.cuda.max_memory_allocated(self._device))} MiB allocated at the peak"
        return note

    def figures(self) -> dict[str, Any]:
        """Paths and figures for `--json`."""
        run = self._run
        paths = {
            "video": run.video,
            "latents": run.latents,
            "memory": run.memory,
            "plot": run.plot,
            "report": run.page,
        }
        return {
            "schema": 1,
            **self._about(),
            "folder": str(run.path),
            **{name: str(path) for name, path in paths.items()},
            "config": str(run.config),
            **self._report().summary(),
        }

    def _about(self) -> dict[str, Any]:
        config = self.video.config
        return {
            "status": self.status,
            "backend": config.backend,
            "model": config.model.name,
            "prompt": config.prompt,
            "seed": config.seed,
            "cache": cache_label(config.cache),
            "device": str(self._device),
            "height": config.video.height,
            "width": config.video.width,
            "fps": config.video.fps,
            "latent_frames": self.samples[-1].num_frames,
            "pixel_frames": self.num_frames,
            "video_seconds": self.num_frames / config.video.fps,
            "given_frames": self._num_given,
            "seconds": round(self._seconds, 3),
            "frames_per_second": round(self.num_made / self._seconds, 3),
        }

    def _report(self) -> MemoryReport:
        config = self.video.config
        label = f"{cache_label(config.cache)} cache"
        # Those of the clip that no latent frame stands for.
        ahead = 0
        if config.source is not None and config.source.clip is not None:
            ahead = self._num_clip - pixel_frames(config.source.clip_frames)
        return MemoryReport(self.video.plan, self.samples, config.video.fps, label, ahead)

    def _save_memory(self, report: MemoryReport, path: Path) -> None:
        about = {**self._about(), "chunk_seconds": self._chunk_seconds}
        _write_text(path, json.dumps(report.to_json(about), indent=1) + "\n")

    def _save_page(self, path: Path) -> None:
        _write_text(path, run_page(read_result(self._run.path)))

    def _save_latents(self, path: Path) -> None:
        # Not save_file: it makes files that only their owner can read.
        path.write_bytes(save({"latents": torch.cat(self._latents, dim=2).contiguous()}))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
