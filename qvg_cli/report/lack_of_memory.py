"""What held the memory when there was too little of it, in one line."""

from __future__ import annotations

import os
import resource

import torch

from qvg_cli.planning.ledger import MemorySample, total
from qvg_cli.report.words import MIB, mib_text


def memory_breakdown(sample: MemorySample | None, device: torch.device) -> str:
    """What the cache held after the last whole chunk, and who has the memory of the device.

    Args:
        sample: Of that chunk; none before the first.
    """
    held = {} if sample is None else sample.end_bytes
    kinds = ", ".join(f"{kind} {mib_text(count)}" for kind, count in sorted(held.items()))
    cache = f"the cache held {mib_text(total(held))} MiB" + (f" ({kinds})" if kinds else "")
    if device.type != "cuda":
        return f"{cache}; {_on_host()}"
    free, whole = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    peak = torch.cuda.max_memory_allocated(device)
    others = max(0, whole - free - reserved)
    return (
        f"{cache}; weights, activations and cache together {mib_text(peak)} MiB at the peak, of "
        f"{mib_text(whole)} MiB on {torch.cuda.get_device_name(device)}; {mib_text(reserved)} are still "
        f"reserved, {mib_text(others)} are other programs', {mib_text(free)} are free"
    )


def _on_host() -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    whole, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    # Linux counts it in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (
        f"this process used {peak / MIB:.0f} MiB at its peak; "
        f"{free / MIB:.0f} of the machine's {whole / MIB:.0f} MiB are free"
    )
