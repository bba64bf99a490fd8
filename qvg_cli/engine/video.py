"""A finished video in memory: its frames, its latents and what its cache held."""

import base64
import html
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qvg_cli.config.schema import RunConfig
from qvg_cli.engine.rollout import ChunkResult
from qvg_cli.errors import UsageError
from qvg_cli.files import write_whole
from qvg_cli.planning.ledger import MemorySample, total
from qvg_cli.video.io import Frames, VideoWriter


@dataclass(frozen=True, eq=False)
class Memory:
    """What the cache of one video held, a sample a chunk."""

    samples: tuple[MemorySample, ...]

    @property
    def peak_bytes(self) -> int:
        """The cache's payload at its fullest moment."""
        return max(total(sample.peak_bytes) for sample in self.samples)

    @property
    def bf16_peak_bytes(self) -> int:
        """The size of a BF16 cache of the same frames at its fullest moment."""
        return max(sample.bf16_peak_bytes for sample in self.samples)

    @property
    def device_peak_bytes(self) -> int | None:
        """The allocator's peak; `None` on a CPU."""
        peaks = [sample.device_peak_bytes for sample in self.samples if sample.device_peak_bytes is not None]
        return max(peaks, default=None)

    def __str__(self) -> str:
        held, bf16 = self.peak_bytes, self.bf16_peak_bytes
        ratio = f", {bf16 / held:.2f}x smaller than BF16" if held else ""
        return f"peak KV cache {held / 2**20:.2f} MiB{ratio} ({bf16 / 2**20:.2f} MiB)"


@dataclass(frozen=True, eq=False)
class Video:
    """A finished video; shows itself in a notebook.

    Attributes:
        frames: `[n, height, width, 3]` uint8.
        fps: Frames per second.
        latents: `[1, C, F, h, w]`, clean, on the CPU.
        memory: What its cache held.
        config: Every setting that it was made with.
        seconds: Time of the loop.
        notes: What of the request did not come true as it was written.
    """

    frames: Frames
    fps: int
    latents: Tensor
    memory: Memory
    config: RunConfig
    seconds: float
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        config: RunConfig,
        results: Sequence[ChunkResult],
        notes: tuple[str, ...] = (),
        clip: Sequence[Frames] = (),
    ) -> Self:
        """The video of all chunks of a rollout, after the frames of the clip that it begins with."""
        made = torch.cat([result.frames for result in results], dim=1)[0].numpy()
        return cls(
            frames=np.concatenate([*clip, made]),
            fps=config.video.fps,
            latents=torch.cat([result.latents.cpu() for result in results], dim=2),
            memory=Memory(tuple(result.memory for result in results)),
            config=config,
            seconds=time.perf_counter() - results[0].began,
            notes=notes,
        )

    def save(self, path: str | Path) -> Path:
        """Write an MP4 or a GIF, by the suffix, or one PNG a frame into a folder; `UsageError` for others."""
        path = Path(path).expanduser()
        if path.suffix == ".mp4":
            _, height, width, _ = self.frames.shape
            with VideoWriter(path, height=height, width=width, fps=self.fps) as writer:
                writer.write(self.frames)
        elif path.suffix == ".gif":
            first, *others = [Image.fromarray(frame) for frame in self.frames]
            about = {"save_all": True, "append_images": others, "duration": round(1000 / self.fps), "loop": 0}
            write_whole(path, lambda part: first.save(part, "GIF", **about))
        elif not path.suffix:
            path.mkdir(parents=True, exist_ok=True)
            for number, frame in enumerate(self.frames):
                Image.fromarray(frame).save(path / f"{number:05}.png")
        else:
            hint = ".mp4, .gif, or a folder for one PNG a frame"
            raise UsageError(f"{path} is not a file type that can be written", hint=hint)
        return path

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            data = base64.b64encode(self.save(Path(folder) / "video.mp4").read_bytes()).decode()
        _, height, width, _ = self.frames.shape
        player = (
            f'<video controls loop autoplay muted width="{width}" height="{height}" '
            f'src="data:video/mp4;base64,{data}"></video>'
        )
        about = html.escape(f"{self.config.prompt} - {self.memory}")
        return {"text/html": f"{player}<br><small>{about}</small>", "text/plain": repr(self)}

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        return f"Video({count} frames, {width} x {height}, {self.fps} fps, {self.memory})"
