"""What this machine has of what a video needs, each point tried out where that is quick."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from unittest import mock

import imageio_ffmpeg
import numpy as np
import psutil
import torch
from huggingface_hub import constants, get_token

from qvg_cli import __version__
from qvg_cli.config.resources import qvg_home
from qvg_cli.device import resolve_device
from qvg_cli.errors import QvgError
from qvg_cli.hub.proxies import check_proxies, proxy_for
from qvg_cli.hub.record import is_whole, read_record
from qvg_cli.hub.spec import read_downloads
from qvg_cli.plugins import CODECS, FAMILIES, load_plugin
from qvg_cli.redaction import redact
from qvg_cli.report.provenance import commit_text, cpu_cores, cpu_name
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


_State = Literal["ok", "note", "problem"]
_Said = tuple[_State, str] | tuple[_State, str, str]
"""What is found, and what to do about it if there is something to do."""


@dataclass(frozen=True)
class Finding:
    """One point, and what to do about it; only a "problem" keeps videos from being made."""

    name: str
    state: _State
    said: str
    remedy: str | None = None


def examine(out: Path) -> list[Finding]:
    """Look at everything that a video needs, and where results would go."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    cache = Path(constants.HF_HUB_CACHE)
    points: dict[str, Callable[[], _Said]] = {
        "qvg": _program,
        "python": lambda: ("ok", f"{platform.python_version()} on {platform.platform()}, {sys.prefix}"),
        "packages": _packages,
        "cpu": _cpu,
        "device": lambda: _device(device),
        "kernels": lambda: _kernels(device),
        "ffmpeg": _ffmpeg,
        "results": lambda: _disk(out, "use another folder with --out"),
        "weights": lambda: _disk(qvg_home(), "set QVG_HOME to another folder"),
        "hub cache": lambda: _disk(cache, "set HF_HOME to another folder"),
        "hub": _hub,
        "downloads": _downloads,
        "plugins": _plugins,
    }
    findings = []
    for name, look in points.items():
        try:
            findings.append(Finding(name, *look()))
        except QvgError as error:
            findings.append(Finding(name, "problem", str(error), error.hint))
        except Exception as error:
            # A doctor that falls ill himself has still something to say of the rest.
            findings.append(Finding(name, "problem", f"{type(error).__name__}: {error}"))
    return findings


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """All findings for a bug report; it names the folders in use, and no token."""
    told = [{name: value and redact(value) for name, value in asdict(each).items()} for each in findings]
    return {"schema": SCHEMA, "findings": told}


def _program() -> _Said:
    commit = commit_text()
    return "ok", __version__ + (f", commit {commit[:12]}" if commit else "")


def _packages() -> _Said:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return "ok", ", ".join(found)


def _cpu() -> _Said:
    memory = psutil.virtual_memory()
    whole, free = memory.total / GIB, memory.available / GIB
    return "ok", f"{cpu_name()}, {cpu_cores()} cores, {free:.1f} of {whole:.1f} GiB free"


def _device(device: torch.device) -> _Said:
    if device.type != "cuda":
        built = torch.version.cuda or torch.version.hip
        said = "no usable GPU" if built else "no usable GPU: this PyTorch is a CPU-only build"
        return "note", said, "the built-in demo models run on a CPU, larger models need a GPU"
    free, whole = (count / GIB for count in torch.cuda.mem_get_info(device))
    major, minor = torch.cuda.get_device_capability(device)
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    memory = f"{free:.1f} of {whole:.1f} GiB free"
    return "ok", f"{names}; {memory}, capability {major}.{minor}, CUDA {torch.version.cuda}"


def _kernels(device: torch.device) -> _Said:
    # A run would be refused for the same reason.
    resolve_device(str(device))
    reason = why_reference(device)
    if reason is not None:
        return "note", f"Triton kernels disabled: {reason}; using the slower PyTorch reference"
    error = kernel_error(device)
    if error > 0.01:
        said = f"compiled, and {error:.2%} off the reference on {device}"
        return "problem", said, "use QVG_KERNELS=reference, and report this"
    return "ok", f"compiled and checked against the reference on {device}"


def kernel_error(device: torch.device) -> float:
    """How far what `device` reads from a span is from what the reference reads, relative to its size."""
    codec = build_codec(FittedSpec())
    span = torch.randn(1, 2, 512, 128, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    packed = codec.encode(span, seed=0)
    read = codec.decode(packed).float().cpu()
    host = replace(packed, tensors={name: tensor.cpu() for name, tensor in packed.tensors.items()})
    with mock.patch.dict(os.environ, QVG_KERNELS="reference"):
        expected = codec.decode(host).float()
    return float((read - expected).norm() / expected.norm())


def _ffmpeg() -> _Said:
    check_encoder()
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    with TemporaryDirectory() as folder:
        encode_part(Path(folder) / "try.mp4", frames, fps=16)
        count = sum(1 for _ in read_frames(Path(folder) / "try.mp4"))
    if count != len(frames):
        return "problem", f"{count} of {len(frames)} frames could be read back from H.264"
    version, program = imageio_ffmpeg.get_ffmpeg_version(), imageio_ffmpeg.get_ffmpeg_exe()
    return "ok", f"{version} encodes and decodes H.264, {program}"


def _disk(folder: Path, elsewhere: str) -> _Said:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    said = f"{free / GIB:.1f} GiB free at {folder}"
    if not os.access(place, os.W_OK):
        return "note", f"{said}, not writable", elsewhere
    if free < _LEAST_FREE_BYTES:
        return "note", said, f"free some space, or {elsewhere}"
    return "ok", said


def _hub() -> _Said:
    import httpx2

    token = "token found" if get_token() else "no token found (only gated models need one)"
    if constants.HF_HUB_OFFLINE:
        return "note", f"offline mode, {token}", "unset HF_HUB_OFFLINE to download"
    check_proxies()
    try:
        status = httpx2.head(constants.ENDPOINT, timeout=_HUB_SECONDS, follow_redirects=True).status_code
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        proxy = proxy_for(constants.ENDPOINT)
        way = f" through the proxy {redact(proxy)}" if proxy else ""
        said = f"no connection to {constants.ENDPOINT}{way}: {type(error).__name__}"
        return "note", said, "downloads need it: check the network, HTTPS_PROXY and HF_ENDPOINT"
    if status >= 500:
        return "note", f"{constants.ENDPOINT} answers with status {status}", "try again later"
    return "ok", f"{constants.ENDPOINT} answers, {token}"


def _plugins() -> _Said:
    entries = [entry for group in (FAMILIES, CODECS) for entry in entry_points(group=group)]
    for entry in entries:
        load_plugin(entry)
    return "ok", ", ".join(entry.value for entry in entries) or "none"


def _downloads() -> _Said:
    found = []
    for name, download in read_downloads().items():
        if download.weights_of is None:
            record = read_record(name)
            state = (
                "not there" if record is None else "whole" if is_whole(name, record) else "no longer whole"
            )
            found.append(f"{name} {state}")
    return "ok", ", ".join(found), "qvg download fetches what is not there"
