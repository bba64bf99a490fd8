"""What the cache held during a run: memory.json for programs, memory.png for people.

Payload bytes are sums of the sizes of the tensors held, by kind, and always stand beside what a BF16 cache
would hold for the same frames at the same moment. The device peak is the allocator's, and is none on a CPU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qvg_cli.config.cache_presets import cache_label
from qvg_cli.config.schema import RunConfig
from qvg_cli.planning.chunks import pixel_frames
from qvg_cli.planning.ledger import MemorySample, root_mean_square, total
from qvg_cli.plotting import new_figure
from qvg_cli.report.words import MIB, describe_bytes
from qvg_kernels.spec import PayloadBytes

SCHEMA = 1


@dataclass(frozen=True)
class MemoryReport:
    """The samples of one run, and what they are of.

    Attributes:
        label: Of the cache in the plot.
        frames_ahead: Pixel frames of the video in front of the plan's first.
    """

    samples: Sequence[MemorySample]
    fps: int
    label: str
    frames_ahead: int = 0

    @property
    def peak_sample(self) -> MemorySample:
        """The chunk in which the cache was fullest."""
        return max(self.samples, key=lambda sample: total(sample.peak_bytes))

    def summary(self) -> dict[str, Any]:
        """Figures of the whole run: at the peak and at the end."""
        peak, end = self.peak_sample, self.samples[-1]
        known = [value for sample in self.samples for value in sample.logit_rms.values()]
        device_peaks = [s.device_peak_bytes for s in self.samples if s.device_peak_bytes is not None]
        return {
            "peak": {"chunk": peak.chunk, **_figures(peak.peak_bytes, peak.bf16_peak_bytes)},
            "end": _figures(end.end_bytes, end.bf16_end_bytes),
            "device_peak_bytes": max(device_peaks, default=None),
            **({"processes": self.processes()} if end.processes else {}),
            **({"predicted_logit_rms": round(root_mean_square(known), 6)} if known else {}),
        }

    def processes(self) -> list[dict[str, int | None]]:
        """The most that each of several processes held, of the chunks that as many have made."""
        count = len(self.samples[-1].processes)
        held = [sample.processes for sample in self.samples if len(sample.processes) == count]
        return [
            {
                "peak_bytes": max(process.peak_bytes for process in mine),
                "end_bytes": mine[-1].end_bytes,
                "device_peak_bytes": max((each for p in mine if (each := p.device_peak_bytes)), default=None),
            }
            for mine in zip(*held, strict=True)
        ]

    def to_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The content of memory.json, what the run was in front."""
        chunks = [
            {
                "chunk": sample.chunk,
                "latent_frames": sample.num_frames,
                "pixel_frames": self._pixel_frames(sample),
                "peak": _figures(sample.peak_bytes, sample.bf16_peak_bytes),
                "end": _figures(sample.end_bytes, sample.bf16_end_bytes),
                "device_peak_bytes": sample.device_peak_bytes,
                **({"processes": [asdict(each) for each in sample.processes]} if sample.processes else {}),
                **({"predicted_logit_rms": dict(sample.logit_rms)} if sample.logit_rms else {}),
            }
            for sample in self.samples
        ]
        return {"schema": SCHEMA, **about, **self.summary(), "chunks": chunks}

    def peak_text(self) -> str:
        """The cache at its peak beside BF16, in words."""
        peak = self.peak_sample
        return describe_bytes(total(peak.peak_bytes), peak.bf16_peak_bytes)

    def save_plot(self, target: Path | BinaryIO) -> None:
        """Draw what the cache held after each chunk over the video's time, beside BF16, and below it what
        packing is predicted to do to logits; a PNG.
        """
        measured = [sample for sample in self.samples if sample.logit_rms]
        seconds = [0.0, *(self._pixel_frames(sample) / self.fps for sample in self.samples)]
        curves = (
            ("BF16, same frames", "#9a9a9a", [s.bf16_end_bytes for s in self.samples]),
            (self.label, "#0b6bcb", [total(s.end_bytes) for s in self.samples]),
        )
        with new_figure(7, 6 if measured else 4, dpi=120) as figure:
            axes, *below = figure.subplots(2 if measured else 1, sharex=True, squeeze=False)[:, 0]
            for label, color, held in curves:
                mib = [0.0, *(value / MIB for value in held)]
                # What is held after a chunk is held while the next one is made.
                axes.step(seconds, mib, where="post", color=color, linewidth=2, label=label)
            axes.set_ylabel("KV cache after each chunk [MiB]")
            axes.set_xlim(0, seconds[-1])
            axes.set_ylim(bottom=0)
            axes.set_title(f"Peak: {self.peak_text()}", loc="left", fontsize=10)
            axes.legend(loc="upper left", frameon=False)
            for logits in below:
                times = [self._pixel_frames(sample) / self.fps for sample in measured]
                rms = [root_mean_square(sample.logit_rms.values()) for sample in measured]
                logits.plot(times, rms, marker="o", color="#0b6bcb", clip_on=False)
                logits.set_ylabel("error of logits, rms [nats]")
                logits.set_ylim(0, 1.05 * (max(rms) or 1))
            for each in (axes, *below):
                each.grid(alpha=0.3)
                each.spines[["top", "right"]].set_visible(False)
            each.set_xlabel("video time [s]")
            figure.savefig(target, format="png")

    def _pixel_frames(self, sample: MemorySample) -> int:
        return self.frames_ahead + pixel_frames(sample.num_frames)


def about_run(
    config: RunConfig,
    device: object,
    *,
    status: str,
    num_latents: int,
    num_frames: int,
    num_given: int,
    seconds: float,
) -> dict[str, Any]:
    """What a run was, in front of the figures of its memory; of its pixel frames some were given."""
    return {
        "status": status,
        "backend": config.backend,
        "model": config.model.name,
        "prompt": config.prompt,
        "seed": config.seed,
        "cache": cache_label(config.cache),
        "matrices": config.cache.matrices,
        "device": str(device),
        "height": config.video.height,
        "width": config.video.width,
        "fps": config.video.fps,
        "decoder": config.video.decoder,
        "latent_frames": num_latents,
        "pixel_frames": num_frames,
        "video_seconds": num_frames / config.video.fps,
        "given_frames": num_given,
        "seconds": round(seconds, 3),
        "frames_per_second": round((num_frames - num_given) / seconds, 3),
    }


def _figures(payload: PayloadBytes, bf16_bytes: int) -> dict[str, Any]:
    held = total(payload)
    return {
        "bytes": held,
        "kinds": dict(sorted(payload.items())),
        "bf16_bytes": bf16_bytes,
        "ratio": round(bf16_bytes / held, 3) if held else None,
    }
