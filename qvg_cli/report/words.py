"""Figures in words, the same on the terminal and in every page. No torch."""

from collections.abc import Mapping, Sequence

_TITLE_LENGTH = 300
MIB = 1024 * 1024
GIB = 1024 * MIB


def describe_bytes(held: int, bf16_bytes: int) -> str:
    """Bytes of a cache beside those of BF16 for the same frames, for people."""
    if not held:
        return memory_text(held)
    compression = compression_text(held, bf16_bytes)
    link = "as" if compression.startswith("same") else "than"
    return f"{memory_text(held)}, {compression} {link} BF16 ({memory_text(bf16_bytes)})"


def compression_text(held: int, bf16_bytes: int) -> str:
    """How much smaller than BF16 a cache is, such as "6.50x smaller"."""
    ratio = bf16_bytes / held
    text = f"{ratio:.2f}x smaller" if ratio >= 1 else f"{1 / ratio:.2f}x larger"
    return "same size" if text.startswith("1.00x") else text


def memory_text(num_bytes: int) -> str:
    """MiB, or GiB from one on, with three digits or more."""
    gib = num_bytes / GIB
    if gib < 1:
        return f"{mib_text(num_bytes)} MiB"
    return f"{gib:.2f} GiB" if gib < 10 else f"{gib:.1f} GiB"


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
    told = f"KV cache {', '.join(held)} MiB"
    return told + (f", GPU peak {', '.join(peaks)} MiB" if peaks else "")


def short_prompt(prompt: str) -> str:
    """A prompt as a title: run.yaml has the whole of it."""
    return prompt if len(prompt) <= _TITLE_LENGTH else f"{prompt[:_TITLE_LENGTH].rstrip()} ..."
