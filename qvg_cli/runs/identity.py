"""What makes a run this run and no other: settings, kind of device, weights, and the files it was given.

Two runs of the same identity make the same frames, so one may go on where the other stopped. The hash of a
large file is remembered by its place, size, time of change and inode, so a changed file is read again.
"""

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from qvg_cli import __version__
from qvg_cli.config.resources import find_taehv, matrices_file, qvg_home, weights_folder
from qvg_cli.config.schema import CacheConfig, Config, LayerCodecs, RunConfig
from qvg_cli.environment import expand_user
from qvg_cli.errors import QvgError, UsageError
from qvg_cli.files import sha256, write_text
from qvg_cli.logs import timed
from qvg_cli.models.registry import find_family

_PLACES: dict[str, bool | set[str]] = {"device": True, "memory": {"transformer", "vae", "weights_sharded"}}
"""Where a run computes, not what: it may go on with others, say after a lack of memory."""
_LABELS: dict[str, bool | set[str]] = {
    "backend": True,
    "family": True,
    "model": {"name", "weights"},
    "cache": {"preset"},
}
"""Names of what is told apart by its content."""
_PACKAGES = ("torch", "diffusers", "transformers", "numpy")
_REMEMBERED_BYTES = 1 << 26
"""Smaller files are read faster than it matters."""
_THREADS = 4
"""One hashes a gigabyte a second."""


class Identity(Config):
    """What decides the frames of one run.

    Attributes:
        settings: The resolved configuration, without what says where things are held.
        device: Its kind, such as "cuda"; another kind computes other bits.
        weights: Hash of the weights folder, over the names and every byte; then that of a small decoder.
        inputs: SHA-256 of every file that a setting names.
        extra: Empty; part of the hash since the first format.
        versions: Of the packages that compute, and the name of the GPU; others may round otherwise.
    """

    format: int = 1
    settings: dict[str, JsonValue]
    device: str
    weights: str
    inputs: dict[str, str]
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    versions: dict[str, str]

    def hash(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def identify(config: RunConfig, device: str) -> Identity:
    settings = config.model_dump(mode="json", exclude=_PLACES)
    inputs = {name: hash_file(expand_user(name)) for name in sorted(_texts(settings)) if _is_file(name)}
    if config.cache.matrices is not None:
        inputs[config.cache.matrices] = hash_file(matrices_file(config.cache.matrices))
    weights, versions = _hash_weights(config), _versions(device)
    return Identity(settings=settings, device=device, weights=weights, inputs=inputs, versions=versions)


def video_ids(configs: Sequence[RunConfig], device: str) -> list[str]:
    """A name for each video of one model, from all that decides its frames and nothing else.

    Files count by their content, not by their names, and a setting at its default does not count, so that one
    that comes later changes no id. The versions of packages are not part of it, as a run goes on with others.
    """
    weights = _hash_weights(configs[0])
    found = []
    for config in configs:
        settings = config.model_dump(mode="json", exclude={**_PLACES, **_LABELS}, exclude_defaults=True)
        if config.cache.matrices is not None:
            settings["cache"]["matrices"] = hash_file(matrices_file(config.cache.matrices))
        prompts = [settings.pop("prompt"), settings.pop("prompt_changes", [])]
        caches: list[CacheConfig | LayerCodecs] = [config.cache, *config.cache.layers.values()]
        codecs = [(cache.k.scheme, cache.v.scheme) for cache in caches]
        about = [config.family_name, device, weights, prompts, codecs, _by_content(settings)]
        found.append(hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12])
    return found


def _hash_weights(config: RunConfig) -> str:
    folder = weights_folder(config.model.weights)
    with timed("hashing the weights"):
        found = hash_folder(folder)
        return found if config.video.decoder == "vae" else f"{found} {hash_file(find_taehv(folder))}"


def are_settings_equal(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations make the same frames."""
    return one.model_dump(exclude=_PLACES) == other.model_dump(exclude=_PLACES)


def differences(begun: Identity, now: Identity) -> list[str]:
    """In what two identities differ so that their frames would, in words; empty if they do not."""
    before, after = (dict(leaves({**_known_settings(each), **each.extra})) for each in (begun, now))
    found = [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    if begun.device != now.device:
        found.append(f"it started on {begun.device}, this is {now.device}")
    if not found and begun.weights != now.weights:
        found.append("the weights have changed")
    for name in {**begun.inputs, **now.inputs}:
        if begun.inputs.get(name) != now.inputs.get(name):
            found.append(f"the file {name} has changed")
    return found


def _known_settings(identity: Identity) -> dict[str, JsonValue]:
    """The settings under their names of today; those that have come since are at their defaults."""
    settings = identity.settings
    try:
        family = find_family(str(settings.get("family") or settings.get("backend")))
        config = family.config_class.model_validate_json(json.dumps(settings))
    except (UsageError, ValidationError):
        return settings
    return config.model_dump(mode="json", exclude=_PLACES)


def other_versions(begun: Identity, now: Identity) -> list[str]:
    """Packages that have other versions now, and another GPU, in words."""
    return [
        f"{name} {old} then, {now.versions.get(name)} now"
        for name, old in begun.versions.items()
        if old != now.versions.get(name)
    ]


def hash_folder(folder: Path) -> str:
    """SHA-256 over the names and the contents of all files in a folder, wherever they are linked to."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        contents = list(pool.map(hash_file, paths))
    named = [(path.relative_to(folder).as_posix(), each) for path, each in zip(paths, contents, strict=True)]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file; that of a large one is remembered."""
    facts = path.stat()
    if facts.st_size < _REMEMBERED_BYTES:
        return sha256(path)
    about = [str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
    known = qvg_home() / "hashes" / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:40]
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{64}", text := known.read_text(encoding="utf-8")):
            return text
    found = sha256(path)
    # A home that cannot be written costs the time again, and nothing else.
    with suppress(OSError, QvgError):
        known.parent.mkdir(parents=True, exist_ok=True)
        write_text(known, found)
    return found


def _versions(device: str) -> dict[str, str]:
    found = {"qvg": __version__, "python": platform.python_version()}
    found.update((name, version(name)) for name in _PACKAGES)
    if device == "cuda":
        import torch

        from qvg_kernels.runtime.dispatch import VARIABLE, choice

        found["gpu"] = torch.cuda.get_device_name()
        found[VARIABLE] = choice()
        # A build of torch may bring it under another name.
        with suppress(PackageNotFoundError):
            found["triton"] = version("triton")
    return found


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted settings and their values."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path, values


def _texts(values: JsonValue) -> Iterator[str]:
    """Every text of the settings, also of those that are lists."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _texts(value)


def _by_content(values: JsonValue) -> JsonValue:
    """`values` with the SHA-256 of a file in the place of its name, and without empty groups."""
    if isinstance(values, dict):
        return {name: _by_content(value) for name, value in values.items() if value != {}}
    if isinstance(values, list):
        return [_by_content(value) for value in values]
    return hash_file(expand_user(values)) if isinstance(values, str) and _is_file(values) else values


def _is_file(text: str) -> bool:
    try:
        return expand_user(text).is_file()
    except (OSError, ValueError, RuntimeError):
        return False
