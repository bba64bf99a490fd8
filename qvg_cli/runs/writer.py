"""One run while it is made: every chunk is put away as it comes, video and reports are written in the end."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from safetensors.torch import save
from torch import Tensor

from qvg_cli.cache.kv_cache import KVCache
from qvg_cli.config.cache_presets import cache_label
from qvg_cli.config.yaml_text import format_yaml
from qvg_cli.device import attention_words
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.rollout import ChunkResult, Done
from qvg_cli.errors import QvgError
from qvg_cli.models.registry import family_of
from qvg_cli.planning.chunks import pixel_frames
from qvg_cli.planning.ledger import MemorySample, total
from qvg_cli.report.html import run_page
from qvg_cli.report.lack_of_memory import memory_breakdown
from qvg_cli.report.memory import MemoryReport
from qvg_cli.report.provenance import provenance
from qvg_cli.report.run_files import read_result
from qvg_cli.report.words import describe_bytes, mib_text
from qvg_cli.runs.checkpoint import RunState
from qvg_cli.runs.folder import RunDir, write_whole
from qvg_cli.runs.identity import identify
from qvg_cli.video.io import Frames


class Recording:
    """What one run has made so far, and the files it leaves.

    Args:
        note: Takes a line for the user.
        state: Left by an earlier process, to go on from; none begins the run.
        command: Continues the run when the options `--resume FOLDER` are added.
        extra: What decides the frames beside the configuration; see `qvg_cli.runs.identity`.

    Attributes:
        samples: The memory of every chunk made so far.
        status: "running", then "complete", "interrupted" or "failed".
        log: File of the run's log.
    """

    def __init__(
        self,
        video: Planned,
        run: RunDir,
        device: torch.device,
        note: Callable[[str], None],
        *,
        state: RunState | None = None,
        command: str = "qvg generate",
        extra: Mapping[str, JsonValue] | None = None,
    ) -> None:
        self.video = video
        self.samples: list[MemorySample] = []
        self.status = "running"
        self.log = run.log
        self.video_path = run.video
        self._run = run
        self._note = note
        self._cache: KVCache | None = None
        self._details = family_of(video.config).run_details(video.config)
        self._device = device
        self._state = state
        self._command = command
        self._extra = extra
        self._latents: list[Tensor] = []
        self._chunk_seconds: list[float] = []
        self._num_clip = 0
        self._num_given = 0
        self._resumed_after: int | None = None
        self._started = 0.0
        self._seconds = 0.0

    @property
    def is_on_gpu(self) -> bool:
        """Whether the run's device is one."""
        return self._device.type == "cuda"

    @property
    def num_frames(self) -> int:
        """Pixel frames made so far."""
        return self._state.video_frames if self._state else 0

    @property
    def num_done(self) -> int:
        """Chunks that an earlier process has made."""
        return self._resumed_after or 0

    @property
    def num_made(self) -> int:
        """Of the pixel frames written, those that were not there before."""
        return max(0, self.num_frames - self._num_given)

    def begin(self, cache: KVCache) -> Done | None:
        """Write what is known before the first chunk, or fill the empty `cache` from what is there.

        Returns:
            The chunks that are there already, if any.
        """
        self._cache, done = cache, None
        if self._state is None:
            self._write_config()
            identity = identify(self.video.config, self._device.type, self._extra)
            self._state = RunState.create(self._run.state, identity)
        elif restored := self._state.restore(self.video.plan, cache, self._device, self._note):
            done = restored.done
            self.samples = restored.memory
            self._latents = [done.latents.cpu()]
            self._chunk_seconds = [record.chunk_seconds for record in restored.records]
            self._seconds = restored.records[-1].seconds
            self._resumed_after = len(done.chunks)
            self._num_given = sum(
                record.num_frames
                for record, chunk in zip(restored.records, self.video.plan.chunks, strict=False)
                if not chunk.makes
            )
            self._note(f"going on after chunk {len(done.chunks)} of {len(self.video.plan.chunks)}")
        self._started = time.perf_counter() - self._seconds
        return done

    def show_clip(self, frames: Frames) -> None:
        """Begin the video with frames of a clip, `[n, height, width, 3]` uint8."""
        assert self._state is not None
        self._state.show_clip(frames, fps=self.video.config.video.fps)
        self._num_clip += len(frames)
        self._num_given += len(frames)

    def add(self, result: ChunkResult) -> None:
        """Put one chunk away; what has been added survives whatever comes."""
        assert self._state is not None
        assert self._cache is not None
        seconds = time.perf_counter() - self._started
        self._state.save(
            result, self.video.plan, self._cache, fps=self.video.config.video.fps, seconds=round(seconds, 4)
        )
        if not result.chunk.makes:
            self._num_given += result.frames.shape[1]
        self._latents.append(result.latents.cpu())
        self.samples.append(result.memory)
        self._chunk_seconds.append(round(result.seconds, 4))
        self._seconds = time.perf_counter() - self._started

    def finish(self, status: str) -> None:
        """Write video, latents and reports; a run that made nothing leaves nothing.

        The state stays as long as something is missing.

        Raises:
            QvgError: A file could not be written; the others were tried all the same.
        """
        if self.status != "running":
            return
        self.status = status
        if not self.samples:
            if self._state is not None:
                self._state.remove()
            self._run.discard()
            return
        assert self._state is not None
        state = self._state
        report = self._report()
        failures = []
        writes: list[Callable[[], None]] = [
            lambda: state.join_video(self._run.video),
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
            state.close()
            raise failures[0]
        if status == "complete":
            state.remove()
        else:
            state.close()

    def status_line(self) -> str:
        """How the run goes, in a few words."""
        sample = self.samples[-1]
        cache = describe_bytes(total(sample.end_bytes), sample.bf16_end_bytes)
        rate = f"{self.num_made / self._seconds:.1f} frames/s" if self.num_made else "given"
        return f"{self.num_frames} frames, {rate}, cache {cache}"

    def log_line(self, result: ChunkResult) -> str:
        """What a chunk cost, for the log."""
        phases = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in result.phases.items())
        sample, memory = result.memory, ""
        if sample.device_peak_bytes is not None:
            memory = f", device peak {mib_text(sample.device_peak_bytes)} MiB"
        held = (
            f"cache {mib_text(total(sample.end_bytes))} MiB, at its peak {mib_text(total(sample.peak_bytes))}"
        )
        return f"chunk {result.chunk.index + 1}: {phases}; {held}{memory}"

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
        place = self._run.video if self._run.video.exists() else self._run.state
        return f"the first {self.num_frames} frames ({lasts:.2f} s) are in {place}"

    def remedy(self) -> str | None:
        """How to go on with a run that ended early; none if nothing is left of it."""
        if not self._run.state.exists():
            return None
        return f"go on with: {self._command} --resume {shlex.quote(str(self._run.path))}"

    def memory_note(self) -> str:
        """What the cache and the device held when memory ran out."""
        return memory_breakdown(self.samples[-1] if self.samples else None, self._device)

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
            "resumed_after": self._resumed_after,
        }

    def _report(self) -> MemoryReport:
        config = self.video.config
        label = f"{cache_label(config.cache)} cache"
        # Those of the clip that no latent frame stands for.
        ahead = 0
        if config.source is not None and config.source.clip is not None:
            ahead = self._num_clip - pixel_frames(config.source.clip_frames)
        return MemoryReport(self.video.plan, self.samples, config.video.fps, label, ahead)

    def _write_config(self) -> None:
        values = {
            **self.video.config.model_dump(mode="json"),
            **({"details": self._details.about} if self._details.about else {}),
            "provenance": {
                **provenance(self._device),
                "attention": attention_words(self.video.config, self._device),
            },
        }
        write_whole(self._run.config, lambda path: _write_text(path, format_yaml(values)))

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
