"""What this machine has of what a video needs, each point tried out where that is quick."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import imageio_ffmpeg
import numpy as np
import psutil
import torch
from huggingface_hub import constants, get_token

from qvg_cli import __version__
from qvg_cli.config.resources import qvg_home
from qvg_cli.device import resolve_device
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.hub.proxies import check_proxies, proxy_for
from qvg_cli.hub.record import is_whole, read_record
from qvg_cli.hub.spec import read_downloads
from qvg_cli.plugins import CODECS, FAMILIES, load_plugin
from qvg_cli.redaction import redact
from qvg_cli.report.provenance import commit_text, cpu_name
from qvg_cli.video.io import check_encoder, read_frames
from qvg_cli.video.parts import encode_part
from qvg_kernels.codecs.registry import build_codec
from qvg_kernels.runtime.dispatch import why_reference
from qvg_kernels.spec import FittedSpec

SCHEMA = 1
GIB = 1024**3
_LEAST_FREE_BYTES = 5 * GIB
_HUB_SECONDS = 5.0
_PACKAGES = ("torch", "triton", "diffusers", "transformers", "huggingface-hub", "safetensors", "numpy")


@dataclass(frozen=True)
class Finding:
    """One point, and what to do about it; only a "problem" keeps videos from being made."""

    name: str
    state: Literal["ok", "note", "problem"]
    said: str
    remedy: str | None = None


def examine(out: Path) -> list[Finding]:
    """Look at everything that a video needs, and where results would go."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    python = f"{platform.python_version()} on {platform.platform()}, {sys.prefix}"
    points: list[tuple[str, Callable[[], Finding]]] = [
        ("qvg", _program),
        ("python", lambda: Finding("python", "ok", python)),
        ("packages", _packages),
        ("cpu", _cpu),
        ("device", lambda: _device(device)),
        ("kernels", lambda: _kernels(device)),
        ("ffmpeg", _ffmpeg),
        ("results", lambda: _disk("results", out)),
        ("weights", lambda: _disk("weights", qvg_home())),
        ("hub cache", lambda: _disk("hub cache", Path(constants.HF_HUB_CACHE))),
        ("hub", _hub),
        ("downloads", _downloads),
        ("plugins", _plugins),
    ]
    findings = []
    for name, look in points:
        try:
            findings.append(look())
        except UsageError as error:
            findings.append(Finding(name, "problem", str(error), error.hint))
        except Exception as error:
            # A doctor that falls ill himself has still something to say of the rest.
            findings.append(Finding(name, "problem", f"{type(error).__name__}: {error}"))
    return findings


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """All findings for a bug report; it names the folders in use, and no token."""
    told = [{name: value and redact(value) for name, value in asdict(each).items()} for each in findings]
    return {"schema": SCHEMA, "findings": told}


def _program() -> Finding:
    commit = commit_text()
    return Finding("qvg", "ok", f"{__version__}" + (f", commit {commit[:12]}" if commit else ""))


def _packages() -> Finding:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return Finding("packages", "ok", ", ".join(found))


def _cpu() -> Finding:
    memory = psutil.virtual_memory()
    whole, free = memory.total / GIB, memory.available / GIB
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("cpu", "ok", f"{cpu_name()}, {cores} cores, {free:.1f} of {whole:.1f} GiB free")


def _device(device: torch.device) -> Finding:
    if device.type != "cuda":
        built = torch.version.cuda or torch.version.hip
        said = "no usable GPU" if built else "no usable GPU: this PyTorch is a CPU-only build"
        return Finding(
            "device", "note", said, "the built-in demo models run on a CPU, larger models need a GPU"
        )
    free, whole = (count / GIB for count in torch.cuda.mem_get_info(device))
    major, minor = torch.cuda.get_device_capability(device)
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    said = (
        f"{names}; {free:.1f} of {whole:.1f} GiB free, capability {major}.{minor}, CUDA {torch.version.cuda}"
    )
    return Finding("device", "ok", said)


def _kernels(device: torch.device) -> Finding:
    # A run would be refused for the same reason.
    resolve_device(str(device))
    reason = why_reference(device)
    if reason is not None:
        return Finding(
            "kernels", "note", f"Triton kernels disabled: {reason}; using the slower PyTorch reference"
        )
    error = kernel_error(device)
    if error > 0.01:
        return Finding(
            "kernels",
            "problem",
            f"compiled, and {error:.2%} off the reference on {device}",
            "use QVG_KERNELS=reference, and report this",
        )
    return Finding("kernels", "ok", f"compiled and checked against the reference on {device}")


def kernel_error(device: torch.device) -> float:
    """How far what `device` reads from a span is from what the reference reads, relative to its size."""
    codec = build_codec(FittedSpec())
    span = torch.randn(1, 2, 512, 128, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    packed = codec.encode(span, seed=0)
    read = codec.decode(packed).float().cpu()
    host = type(packed)(
        packed.shape, packed.dtype, {k: v.cpu() for k, v in packed.tensors.items()}, packed.kinds
    )
    before = os.environ.get("QVG_KERNELS")
    os.environ["QVG_KERNELS"] = "reference"
    try:
        expected = codec.decode(host).float()
    finally:
        os.environ.pop("QVG_KERNELS")
        if before is not None:
            os.environ["QVG_KERNELS"] = before
    return float((read - expected).norm() / expected.norm())


def _ffmpeg() -> Finding:
    try:
        check_encoder()
        frames = np.zeros((2, 32, 32, 3), np.uint8)
        with TemporaryDirectory() as folder:
            encode_part(Path(folder) / "try.mp4", frames, fps=16)
            count = sum(1 for _ in read_frames(Path(folder) / "try.mp4"))
    except QvgError as error:
        return Finding("ffmpeg", "problem", str(error), error.hint)
    if count != len(frames):
        return Finding("ffmpeg", "problem", f"{count} of {len(frames)} frames could be read back from H.264")
    found = (
        f"{imageio_ffmpeg.get_ffmpeg_version()} encodes and decodes H.264, {imageio_ffmpeg.get_ffmpeg_exe()}"
    )
    return Finding("ffmpeg", "ok", found)


def _disk(name: str, folder: Path) -> Finding:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    said = f"{free / GIB:.1f} GiB free at {folder}"
    if not os.access(place, os.W_OK):
        return Finding(name, "note", f"{said}, not writable", _elsewhere(name))
    if free < _LEAST_FREE_BYTES:
        return Finding(name, "note", said, f"free some space, or {_elsewhere(name)}")
    return Finding(name, "ok", said)


def _elsewhere(name: str) -> str:
    return {
        "results": "use another folder with --out",
        "weights": "set QVG_HOME to another folder",
        "hub cache": "set HF_HOME to another folder",
    }[name]


def _hub() -> Finding:
    import httpx2

    token = "token found" if get_token() else "no token found (only gated models need one)"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", f"offline mode, {token}", "unset HF_HUB_OFFLINE to download")
    try:
        check_proxies()
    except UsageError as error:
        return Finding("hub", "problem", str(error), error.hint)
    try:
        status = httpx2.head(constants.ENDPOINT, timeout=_HUB_SECONDS, follow_redirects=True).status_code
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        proxy = proxy_for(constants.ENDPOINT)
        way = f" through the proxy {redact(proxy)}" if proxy else ""
        said = f"no connection to {constants.ENDPOINT}{way}: {type(error).__name__}"
        return Finding(
            "hub", "note", said, "downloads need it: check the network, HTTPS_PROXY and HF_ENDPOINT"
        )
    if status >= 500:
        return Finding("hub", "note", f"{constants.ENDPOINT} answers with status {status}", "try again later")
    return Finding("hub", "ok", f"{constants.ENDPOINT} answers, {token}")


def _plugins() -> Finding:
    entries = [entry for group in (FAMILIES, CODECS) for entry in entry_points(group=group)]
    for entry in entries:
        load_plugin(entry)
    return Finding("plugins", "ok", ", ".join(entry.value for entry in entries) or "none")


def _downloads() -> Finding:
    found = []
    for name, download in read_downloads().items():
        if download.weights_of is not None:
            continue
        record = read_record(name)
        state = "not there" if record is None else "whole" if is_whole(name, record) else "no longer whole"
        found.append(f"{name} {state}")
    return Finding("downloads", "ok", ", ".join(found), "qvg download fetches what is not there")
