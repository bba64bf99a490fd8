"""Figures in words, the same on the terminal and in every page. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_TITLE_LENGTH = 300
MIB = 1024 * 1024


def describe_bytes(held: int, bf16_bytes: int) -> str:
    """Bytes of a cache beside those of BF16 for the same frames, for people."""
    text = f"{mib_text(held)} MiB"
    if not held:
        return text
    ratio = bf16_bytes / held
    comparison = f"{ratio:.2f}x smaller than" if ratio >= 1 else f"{1 / ratio:.2f}x larger than"
    if comparison.startswith("1.00x"):
        comparison = "as large as"
    return f"{text}, {comparison} BF16 ({mib_text(bf16_bytes)} MiB)"


def mib_text(num_bytes: int) -> str:
    """MiB with three digits or more."""
    mib = num_bytes / MIB
    return f"{mib:.2f}" if mib < 10 else f"{mib:.1f}"


def processes_text(processes: Sequence[Mapping[str, int | None]]) -> str:
    """What each of several processes held at most, first the first."""
    held, peaks = (
        [mib_text(count) for each in processes if (count := each[name]) is not None]
        for name in ("peak_bytes", "device_peak_bytes")
    )
    told = f"cache {', '.join(held)} MiB"
    return told + (f", device peak {', '.join(peaks)} MiB" if peaks else "")


def short_prompt(prompt: str) -> str:
    """A prompt as a title: run.yaml has the whole of it."""
    return prompt if len(prompt) <= _TITLE_LENGTH else f"{prompt[:_TITLE_LENGTH].rstrip()} ..."
