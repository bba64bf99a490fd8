"""What one run has to say of itself, in figures and in words, while it is made and when it has ended."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import psutil
import torch

from qvg_cli.config.cache_presets import cache_label
from qvg_cli.engine.jobs import Planned
from qvg_cli.engine.rollout import ChunkResult
from qvg_cli.planning.chunks import pixel_frames
from qvg_cli.planning.ledger import MemorySample, total
from qvg_cli.report.memory import MemoryReport, about_run
from qvg_cli.report.words import compression_text, memory_text, mib_text, processes_text
from qvg_cli.runs.checkpoint import ChunkRecord


class Times:
    """Where the time of one process goes, from the wait for a video to its last file, in seconds."""

    def __init__(self, began: float | None = None) -> None:
        self._began = time.perf_counter() if began is None else began
        self._loop_began = self._began
        self._loop_ended: float | None = None
        self._spent = dict.fromkeys(("text", "model", "vae", "writing"), 0.0)
        self._first_frame: float | None = None
        self._num_frames = 0
        self._computing = self._recaching = 0.0
        self._ended = self._late = 0.0

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the block as "text" or "writing"."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spent[name] += time.perf_counter() - started

    def begin_loop(self) -> None:
        """All that comes before the first chunk is there."""
        self._loop_began = time.perf_counter()

    def end_loop(self) -> None:
        """The video is there."""
        self._loop_ended = time.perf_counter()

    def add(self, result: ChunkResult) -> None:
        """Take in a chunk whose pixels have just come, after those before it."""
        decoding = result.phases["decode"]
        self._spent["vae"] += decoding
        self._spent["model"] += sum(result.phases.values()) - decoding
        if not result.latents.shape[2]:
            # Finished frames have passed again.
            self._recaching += result.seconds
        # A decoder that works beside the model is late for as long as the next chunk has not begun.
        self._computing += result.seconds + min(self._late, result.began - self._ended)
        self._ended, self._late = result.began + result.seconds, result.late_seconds
        if result.chunk.makes:
            self._num_frames += result.num_frames
            if self._first_frame is None:
                self._first_frame = time.perf_counter() - self._began

    @property
    def loop_seconds(self) -> float:
        """From the loop's begin to its end, or until now."""
        return (self._loop_ended or time.perf_counter()) - self._loop_began

    def figures(self) -> dict[str, float | None]:
        """Everything so far, as memory.json has it; model and VAE may have worked at the same time."""
        loop, spent = self.loop_seconds, self._spent
        model, computing = spent["model"], self._computing + self._late
        figures = {
            "start": self._loop_began - self._began - spent["text"],
            **spent,
            "recache": self._recaching,
            "idle": max(0.0, loop - computing - spent["writing"]),
            "total": self._loop_began - self._began + loop,
            "first_frame": self._first_frame,
            "frames_per_second_without_vae": self._num_frames / model if model else None,
            "frames_per_second_with_vae": self._num_frames / computing if computing else None,
        }
        return {name: value if value is None else round(value, 3) for name, value in figures.items()}


class Summary:
    """The figures of one run.

    Attributes:
        records: Of the chunks made so far, the one that is still being written among them.
        num_clip: Pixel frames of a clip in front of the first chunk.
        seconds: Time of the loop so far, that of all processes.
        status: "running", then "complete", "interrupted" or "failed".
        resumed_after: Chunks that earlier processes have made; `None` if this one has begun the run.
    """

    def __init__(self, video: Planned, device: torch.device, times: Times) -> None:
        self.video = video
        self.times = times
        self.records: list[ChunkRecord] = []
        self.num_clip = 0
        self.seconds = 0.0
        self.status = "running"
        self.resumed_after: int | None = None
        self._device = device

    @property
    def samples(self) -> list[MemorySample]:
        return [record.memory for record in self.records]

    @property
    def num_frames(self) -> int:
        """Pixel frames so far."""
        return self.num_clip + sum(record.num_frames for record in self.records)

    @property
    def num_given(self) -> int:
        """Pixel frames that were there before the run."""
        chunks = self.video.plan.chunks
        return self.num_clip + sum(
            record.num_frames for record in self.records if not chunks[record.chunk].makes
        )

    @property
    def report(self) -> MemoryReport:
        """What the cache held."""
        config = self.video.config
        # Those of the clip that no latent frame stands for.
        ahead = 0
        if config.source is not None and config.source.clip is not None:
            ahead = self.num_clip - pixel_frames(config.source.clip_frames)
        label = f"{cache_label(config.cache)} cache"
        return MemoryReport(self.samples, config.video.fps, label, ahead)

    def status_line(self) -> str:
        """How the run goes, in a few words."""
        sample = self.samples[-1]
        held = total(sample.end_bytes)
        cache = memory_text(held)
        if held:
            cache += f" ({compression_text(held, sample.bf16_end_bytes)})"
        num_made = self.num_frames - self.num_given
        rate = f"{num_made / self.seconds:.1f} fps" if num_made else "given"
        return f"{self.num_frames} frames, {rate}, KV cache {cache}"

    def __str__(self) -> str:
        num_made = self.num_frames - self.num_given
        made = f", {num_made} of them new," if self.num_given else ""
        times = self.times.figures()
        spent = ", ".join(
            f"{'VAE' if name == 'vae' else name} {times[name]:.1f} s"
            for name in ("start", "text", "model", "vae", "writing", "idle")
        )
        if times["recache"]:
            spent += f"; of the model time, {times['recache']:.1f} s for prompt changes"
        if times["first_frame"] is not None:
            spent += f"; first frame after {times['first_frame']:.1f} s"
            spent += f"; {times['frames_per_second_without_vae']:.1f} fps without the VAE"
            spent += f", {times['frames_per_second_with_vae']:.1f} with the VAE"
        processes = self.report.summary().get("processes")
        each = f"\nper process: {processes_text(processes)}" if processes else ""
        return (
            f"{self._lasting()}{made} in {self.seconds:.1f} s, {num_made / self.seconds:.1f} fps; "
            f"peak KV cache {self.report.peak_text()}{each}\n{spent}"
        )

    def kept(self) -> str:
        """How much there is of a run that ended early."""
        return f"the first {self._lasting()}" if self.num_frames else "no frames were kept"

    def memory_note(self) -> str:
        """What the cache held after the last whole chunk, and who has the memory of the device."""
        held = self.samples[-1].end_bytes if self.records else {}
        kinds = ", ".join(f"{kind} {mib_text(count)}" for kind, count in sorted(held.items()))
        cache = f"the KV cache held {mib_text(total(held))} MiB" + (f" ({kinds})" if kinds else "")
        if self._device.type != "cuda":
            return f"{cache}; {_on_host()}"
        free, whole = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        peak = torch.cuda.max_memory_allocated(self._device)
        others = max(0, whole - free - reserved)
        card = torch.cuda.get_device_name(self._device)
        return (
            f"{cache}; weights, activations and cache peaked at {mib_text(peak)} of {mib_text(whole)} MiB on "
            f"{card}; {mib_text(reserved)} MiB still reserved, {mib_text(others)} MiB used by other "
            f"programs, {mib_text(free)} MiB free"
        )

    def about(self) -> dict[str, Any]:
        """What the run was, in front of the figures of its memory."""
        about = about_run(
            self.video.config,
            self._device,
            status=self.status,
            num_latents=self.samples[-1].num_frames,
            num_frames=self.num_frames,
            num_given=self.num_given,
            seconds=self.seconds,
        )
        return {**about, "times": self.times.figures(), "resumed_after": self.resumed_after}

    def to_json(self) -> dict[str, Any]:
        """The content of memory.json."""
        chunk_seconds = [record.chunk_seconds for record in self.records]
        content = self.report.to_json({**self.about(), "chunk_seconds": chunk_seconds})
        for chunk, record in zip(content["chunks"], self.records, strict=True):
            if record.probe_seconds:
                losses = {name: [asdict(each) for each in layers] for name, layers in record.losses.items()}
                chunk |= {"losses": losses, "probe_seconds": record.probe_seconds}
        return content

    def _lasting(self) -> str:
        return f"{self.num_frames} frames ({self.num_frames / self.video.config.video.fps:.2f} s)"


def chunk_line(result: ChunkResult) -> str:
    """What a chunk cost, for the log."""
    phases = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in result.phases.items())
    sample, memory = result.memory, ""
    if sample.device_peak_bytes is not None:
        memory = f", GPU peak {mib_text(sample.device_peak_bytes)} MiB"
    held = f"KV cache {mib_text(total(sample.end_bytes))} MiB, peak {mib_text(total(sample.peak_bytes))}"
    return f"chunk {result.chunk.index + 1}: {phases}; {held}{memory}"


def _on_host() -> str:
    memory = psutil.virtual_memory()
    # Linux counts it in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return (
        f"this process peaked at {memory_text(peak)}; {memory_text(memory.available)} of "
        f"{memory_text(memory.total)} are free"
    )
