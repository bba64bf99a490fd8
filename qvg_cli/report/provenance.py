"""Where a result comes from: versions, commit, hardware and command, for run.yaml."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from qvg_cli import __version__
from qvg_cli.config.resources import checkout_dir
from qvg_cli.redaction import redact

_PACKAGES = ("torch", "diffusers", "transformers", "av", "imageio-ffmpeg")


def provenance(device: torch.device) -> dict[str, Any]:
    """What made this run, beside its configuration."""
    return {
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": redact(shlex.join(["qvg", *sys.argv[1:]])),
        "versions": {
            "qvg": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        "commit": commit_text(),
        "hardware": _hardware(device),
    }


@cache
def commit_text() -> str | None:
    """The checked-out commit, with a plus if tracked files differ from it; none outside a checkout."""
    root = checkout_dir()
    if root is None:
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return f"{commit}+" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _hardware(device: torch.device) -> dict[str, Any]:
    hardware: dict[str, Any] = {
        "device": str(device),
        "cpu": cpu_name(),
        "cores": cpu_cores(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware["gpu"] = properties.name
        hardware["gpu_memory_mib"] = properties.total_memory // (1024 * 1024)
    return hardware


def cpu_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
