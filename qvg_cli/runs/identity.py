"""What makes a run this run and no other: settings, kind of device, weights, and the files it was given.

Two runs of the same identity make the same frames, so one may go on where the other stopped.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import JsonValue

from qvg_cli import __version__
from qvg_cli.config.resources import weights_folder
from qvg_cli.config.schema import Config, RunConfig
from qvg_cli.logs import timed
from qvg_cli.runs.fingerprint import hash_file, hash_folder

_PLACES: dict[str, bool | set[str]] = {"device": True, "memory": {"transformer", "vae"}}
"""Where a run computes, not what: it may go on with others, say after a lack of memory."""
_PACKAGES = ("torch", "diffusers", "transformers", "numpy")


class Identity(Config):
    """Of one run.

    Attributes:
        settings: The resolved configuration, without what says where things are held.
        device: Its kind, such as "cuda"; another kind computes other bits.
        weights: Hash of the weights folder, over the names and every byte.
        inputs: SHA-256 of every file that a setting, or `extra`, names.
        extra: What else decides the frames, by name.
        versions: Of the packages that compute, and the name of the GPU; others may round otherwise.
    """

    format: int = 1
    settings: dict[str, JsonValue]
    device: str
    weights: str
    inputs: dict[str, str]
    extra: dict[str, JsonValue]
    versions: dict[str, str]

    def hash(self) -> str:
        """A name for this identity."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def identify(config: RunConfig, device: str, extra: Mapping[str, JsonValue] | None = None) -> Identity:
    """The identity of a run of `config`.

    Args:
        device: Kind of device that it runs on.
        extra: What decides the frames beside the configuration.

    Raises:
        MissingModelError: The weights are not there.
    """
    with timed("reading what the weights are"):
        weights = hash_folder(weights_folder(config.model.weights))
    settings = config.model_dump(mode="json", exclude=_PLACES)
    texts = [text for _, text in _leaves({"settings": settings, "extra": dict(extra or {})})]
    files = sorted({text for text in texts if isinstance(text, str) and _is_file(text)})
    return Identity(
        settings=settings,
        device=device,
        weights=weights,
        inputs={name: hash_file(Path(name).expanduser()) for name in files},
        extra=dict(extra or {}),
        versions=_versions(device),
    )


def are_settings_equal(one: RunConfig, other: RunConfig) -> bool:
    """Whether two configurations make the same frames."""
    return one.model_dump(exclude=_PLACES) == other.model_dump(exclude=_PLACES)


def differences(begun: Identity, now: Identity) -> list[str]:
    """In what two identities differ so that their frames would, in words; empty if they do not."""
    found: list[str] = []
    before = dict(_leaves({**begun.settings, **begun.extra}))
    after = dict(_leaves({**now.settings, **now.extra}))
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            found.append(f"{name} was {before.get(name)!r} and is {after.get(name)!r}")
    if begun.device != now.device:
        found.append(f"it ran on {begun.device} and this is {now.device}")
    if not found and begun.weights != now.weights:
        found.append("the weights have changed")
    for name in {**begun.inputs, **now.inputs}:
        if begun.inputs.get(name) != now.inputs.get(name):
            found.append(f"the file {name} has changed")
    return found


def other_versions(begun: Identity, now: Identity) -> list[str]:
    """Packages that have other versions now, and another GPU, in words."""
    return [
        f"{name} {old} then, {now.versions.get(name)} now"
        for name, old in begun.versions.items()
        if old != now.versions.get(name)
    ]


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


def _leaves(values: JsonValue, path: str = "") -> Iterator[tuple[str, JsonValue]]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path, values


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False
