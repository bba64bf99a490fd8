"""From files and options to one checked `RunConfig`.

Later sources win: the backend's YAML, its `pocket` section, the user's file, `--set`, the other options. All
are checked alike, and a message names the source of the value that it is about. What a family adds comes as
data: its class of `RunConfig` and its options. No torch.
"""

import copy
import functools
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qvg_cli.config.cache_presets import KNOBS, merge_cache
from qvg_cli.config.errors import describe
from qvg_cli.config.options import FamilyOption
from qvg_cli.config.resources import config_files
from qvg_cli.config.schema import OLD_OFFLOAD_WORDS, RunConfig
from qvg_cli.config.yaml_text import parse_yaml
from qvg_cli.errors import UsageError, unknown_name
from qvg_cli.text_files import find_unwritable, read_text

DEFAULT_BACKEND = "self-forcing"
_ABOUT_THE_FILE = ("summary", "licence", "claims", "provenance", "details", "download")
"""Sections of a file that describe it and set nothing."""
_CACHE_NAMES = [f"cache.{side}{knob}" for side in ("", "k.", "v.") for knob in KNOBS]
_NAMES_BACKEND = re.compile(r"^(backend|family):", re.MULTILINE)


@dataclass(frozen=True)
class Layer:
    """Settings of one source, by section and name, or what was given under the flag of a family's option."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What the user asked for, before any file is read.

    Attributes:
        backend: Name of a file in configs/.
        file: The user's YAML.
        sets: `key=value` texts, in their order.
        options: Settings of options of their own, such as `--seed`.
    """

    backend: str | None = None
    pocket: bool = False
    file: Path | None = None
    sets: Sequence[str] = ()
    options: Sequence[Layer] = ()


@dataclass(frozen=True)
class LoadedConfig:
    """A checked configuration.

    Attributes:
        has_default_backend: No source named a backend, so the built-in pocket model was taken.
        has_default_prompt: No source but the backend's YAML gave a prompt.
        notes: What of the request has another name now or no effect, to be shown to the user.
    """

    config: RunConfig
    has_default_backend: bool
    has_default_prompt: bool
    notes: tuple[str, ...] = ()


Rules = tuple[type[RunConfig], Sequence[FamilyOption]]
"""What a family checks its settings against, and the options that it adds to the command line."""


def resolve(request: Request, rules_of: Callable[[str], Rules]) -> LoadedConfig:
    """Lay the settings of a request over one another, the last on top, and check them; or a `UsageError`."""
    given = [_read_layer(request.file)] if request.file else []
    given += sorted([*map(_parse_set, request.sets), *request.options], key=_is_change)
    named = [layer.values["backend"] for layer in given if "backend" in layer.values]
    name = known_name(request.backend or (named[-1] if named else DEFAULT_BACKEND), backend_names())
    if name not in backend_names():
        raise unknown_name("backend", name, backend_names())
    builtin = _read_layer(config_files()[name])
    family = str(builtin.values.get("family") or name)
    for layer in given:
        other = layer.values.get("family") or family
        if other != family:
            raise UsageError(
                f"family={other} ({layer.source}): {name} belongs to the family {family}",
                hint="remove it, or use another --backend",
            )
    model, options = rules_of(family)
    is_default = request.backend is None and not named
    is_pocket = request.pocket or is_default
    if is_pocket and "pocket" not in builtin.values:
        raise UsageError(
            f"{name} has no built-in demo weights",
            hint=f"omit --pocket, or use it with --backend {DEFAULT_BACKEND}",
        )
    user = [_with_option(layer, options) for layer in given]
    layers = [_with_pocket(layer, is_pocket) for layer in (builtin, *user)]
    layers.append(Layer("--backend", {"backend": name, "family": None if family == name else family}))
    config = _check(layers, model)
    notes = [note for layer in user for note in _old_words(layer)]
    chosen = [layer.source for layer in user if "matrices" in layer.values.get("cache", {})]
    is_other_model = not chosen and any(
        {"weights", "checkpoint"} & set(layer.values.get("model", {})) for layer in user
    )
    if config.cache.matrices is not None and (is_other_model or not config.cache.is_shaped):
        notes += [
            f"cache.matrices={config.cache.matrices} ({source}) has no effect: no codec of "
            f"{config.cache.preset} is shaped"
            for source in chosen
        ]
        cache = config.cache.model_copy(update={"matrices": None})
        config = config.model_copy(update={"cache": cache})
    _check_needs(given, options, config)
    return LoadedConfig(
        config=config,
        has_default_backend=is_default,
        has_default_prompt=not any("prompt" in layer.values for layer in user),
        notes=tuple(notes),
    )


def backend_names() -> tuple[str, ...]:
    """Names that `--backend` takes, the default first: files of configs/ that say their backend or family."""
    texts = {name: path.read_text(encoding="utf-8") for name, path in config_files().items()}
    names = [name for name, text in texts.items() if _NAMES_BACKEND.search(text)]
    return tuple(sorted(names, key=lambda name: name != DEFAULT_BACKEND))


def known_name(name: object, known: Sequence[str]) -> Any:
    """The one of `known` that `name` is but for capitals; `name` itself where there is none."""
    return next((each for each in known if isinstance(name, str) and each == name.lower()), name)


def make_request(
    backend: str | None = None,
    *,
    pocket: bool = False,
    cache: str | None = None,
    device: str | None = None,
    file: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Request:
    """What is asked for from Python: settings by dotted names, a family's options by their Python names."""
    named = {"cache.preset": cache, "device": device}
    layers = setting_layers({name: value for name, value in named.items() if value is not None})
    layers += setting_layers(settings or {}) + option_layers(options or {})
    return Request(backend, pocket, None if file is None else Path(file), options=layers)


def setting_layers(settings: Mapping[str, Any]) -> list[Layer]:
    return [Layer(name, nest(name, value)) for name, value in settings.items()]


def option_layers(options: Mapping[str, Any]) -> list[Layer]:
    flags = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return [Layer(flag, {flag: value}) for flag, value in flags.items()]


def _read_layer(path: Path) -> Layer:
    values = parse_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{path} has no settings", hint="a line looks like `seed: 7`")
    return Layer(str(path), {key: value for key, value in values.items() if key not in _ABOUT_THE_FILE})


def _is_change(layer: Layer) -> bool:
    """Whether a layer of the command line comes after those that name a preset, which would undo it."""
    cache = layer.values.get("cache")
    return not (isinstance(cache, Mapping) and "preset" in cache)


def _parse_set(text: str) -> Layer:
    path, separator, value = text.partition("=")
    path = path.strip()
    if not separator or not all(path.split(".")):
        raise UsageError(
            f"--set {shlex.quote(text)} is not of the form KEY=VALUE", hint="e.g. --set video.fps=24"
        )
    return Layer(f"--set {path}", nest(path, parse_yaml(value, f"--set {path}")))


def nest(path: str, value: Any) -> dict[str, Any]:
    """`value` at a dotted path."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _old_words(layer: Layer) -> Iterator[str]:
    memory = layer.values.get("memory")
    for name, value in memory.items() if isinstance(memory, Mapping) else ():
        if name in ("transformer", "vae") and isinstance(value, str) and value in OLD_OFFLOAD_WORDS:
            new = f"memory.{name}={OLD_OFFLOAD_WORDS[value]}"
            yield f"memory.{name}={value} ({layer.source}) is now called {new}; the old name still works"


def _with_pocket(layer: Layer, is_pocket: bool) -> Layer:
    """`layer` with its `pocket` section laid over the rest, or left out."""
    values = copy.deepcopy(dict(layer.values))
    if layer.source.startswith("--"):
        return Layer(layer.source, values)
    pocket = values.pop("pocket", None)
    if is_pocket and pocket is not None:
        if not isinstance(pocket, dict):
            raise UsageError(f"{layer.source}: pocket must be a group of settings, not {pocket!r}")
        _merge(values, pocket, layer.source, {})
    return Layer(layer.source, values)


def _with_option(layer: Layer, options: Sequence[FamilyOption]) -> Layer:
    """`layer` with what was given for a family's option at the setting that this family has for it."""
    if not (layer.source.startswith("--") and layer.source in layer.values):
        return layer
    for option in options:
        if option.flag == layer.source:
            return Layer(layer.source, nest(option.setting, option.read(layer.values[layer.source])))
    raise UsageError(
        f"{layer.source} is not an option of this model", hint="use --backend with a model that has it"
    )


def _check_needs(layers: Sequence[Layer], options: Sequence[FamilyOption], config: RunConfig) -> None:
    """Refuse a family's option that has no effect with the other settings."""
    given = {layer.source for layer in layers}
    for option in options:
        if option.flag in given and option.needs is not None:
            path, needed = option.needs
            value = functools.reduce(getattr, path.split("."), config)
            if value != needed:
                raise UsageError(
                    f"{option.flag} has no effect with {path}={value}", hint=f"it needs {path}={needed}"
                )


def _merge(
    into: dict[str, Any], values: Mapping[str, Any], source: str, sources: dict[str, str], path: str = ""
) -> None:
    for key, value in values.items():
        name = f"{path}{key}"
        old = into.get(key)
        if isinstance(old, dict) and not isinstance(value, Mapping):
            raise UsageError(
                f"{name}={value!r} ({source}): {name} is a group of settings",
                hint=f"set one of {', '.join(f'{name}.{inner}' for inner in old)}",
            )
        if isinstance(value, Mapping) and isinstance(old, dict):
            _merge(old, value, source, sources, f"{name}.")
        else:
            into[key] = copy.deepcopy(value)
            _note_source(name, value, source, sources)


def _note_source(name: str, value: Any, source: str, sources: dict[str, str]) -> None:
    sources[name] = source
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _note_source(f"{name}.{key}", inner, source, sources)


def _check(layers: Sequence[Layer], model: type[RunConfig]) -> RunConfig:
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    cache_layers = []
    for layer in layers:
        rest = dict(layer.values)
        if "cache" in rest:
            cache = rest.pop("cache")
            if not isinstance(cache, Mapping):
                raise UsageError(
                    f"cache={cache!r} ({layer.source}): cache is a group of settings",
                    hint="set cache.preset, or one of its other settings",
                )
            cache_layers.append((layer.source, cache))
            _note_source("cache", cache, layer.source, sources)
        _merge(merged, rest, layer.source, sources)
    _check_texts(merged, sources)
    merged["cache"] = merge_cache(cache_layers)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise describe(error, sources, model, _CACHE_NAMES) from error


def _check_texts(values: Mapping[str, Any], sources: Mapping[str, str], path: str = "") -> None:
    """Refuse what run.yaml cannot hold, such as the name of a file that is not UTF-8."""
    for key, value in values.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping):
            _check_texts(value, sources, f"{name}.")
            continue
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, Mapping):
                _check_texts(text, sources, f"{name}.")
            elif isinstance(text, str) and (found := find_unwritable(text)):
                raise UsageError(
                    f"{name}={text!r} ({sources.get(name, 'the settings')}): {found}",
                    hint="run.yaml is UTF-8 text; rename the file" if "byte" in found else None,
                )
