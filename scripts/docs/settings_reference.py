"""The reference of settings, read from the configuration classes, the models' YAML and the presets."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from qvg_cli.config.resources import configs_dir
from qvg_cli.config.schema import CacheConfig, RunConfig
from qvg_cli.models.registry import find_family

HEAD = """# Settings

A run is one tree of settings. They come, each over those before, from the model's YAML, from `--config FILE`,
from `--set KEY=VALUE` (repeatable) and from the options of the command. A run's `run.yaml` has them all, and
`qvg generate --config run.yaml` reproduces the video. Unknown keys are refused.

```console
$ qvg generate --set cache.keep_recent_chunks=1 --set video.fps=24
```
"""


def settings_page() -> str:
    """The page: what every model has, what each adds, the cache presets, the settings of the codecs."""
    families = dict(read_families())
    by_family = {
        name: find_family(values.get("family") or name).config_class for name, values in families.items()
    }
    parts = [HEAD, "## Every model\n"]
    parts.append(table(rows_of(RunConfig, "", list(families.values()))))
    for name, kind in by_family.items():
        own = {path for path, *_ in rows_of(kind, "", [families[name]])}
        common = {path for path, *_ in rows_of(RunConfig, "", [])}
        values = [row for row in rows_of(kind, "", [families[name]]) if row[0] in own - common]
        parts.append(f"## {name}\n\n{summary_of(name)}\n")
        if values:
            parts.append("Beside those of every model:\n\n" + table(values))
        parts.append(defaults_of(families[name], common))
    parts += ["## Cache presets\n", presets_table(), "## Codecs\n", CODECS, *codec_tables()]
    return "\n".join(parts)


CODECS = """`cache.k` and `cache.v` hold the codec of the keys and of the values. `--cache PRESET` sets both,
`--set cache.k.preset=int2 --set cache.v.preset=int3` one each. `--set cache.k.KEY=VALUE` changes one of the
settings below, `--set cache.KEY=VALUE` changes it for both. `--set cache.layers.2-5.v.preset=trit` holds for
layers 2 to 5 of the model alone, counted from 0.
"""


def read_families() -> Iterator[tuple[str, dict[str, Any]]]:
    """The models that have a YAML file, with its settings."""
    for path in sorted(configs_dir().glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "backend" in values or "family" in values:
            yield path.stem, values


def summary_of(name: str) -> str:
    """What the YAML file says of its model."""
    values = yaml.safe_load((configs_dir() / f"{name}.yaml").read_text(encoding="utf-8"))
    return f"{values['summary']}."


Row = tuple[str, str, str, str]


def rows_of(kind: type[BaseModel], prefix: str, values: list[dict[str, Any]]) -> list[Row]:
    """Path, possible values, default and meaning of each setting of a class and of the groups in it."""
    rows: list[Row] = []
    meanings = described(kind)
    for name, field in kind.model_fields.items():
        path = f"{prefix}{name}"
        if kind is CacheConfig and name in ("k", "v", "layers"):
            continue
        group = group_class(field.annotation)
        inner = [value.get(name) for value in values]
        if group is not None:
            rows += rows_of(group, f"{path}.", [value for value in inner if isinstance(value, dict)])
            continue
        if name in ("backend", "family"):
            continue
        default = field.default if not field.is_required() else None
        told = [value[name] for value in values if name in value]
        shown = told[0] if told and all(entry == told[0] for entry in told) else default
        is_varied = bool(told) and any(entry != told[0] for entry in told)
        is_given = not told and field.is_required()
        default_text = "by model" if is_varied else "" if is_given else value_text(shown)
        rows.append(
            (path, type_text(field.annotation), default_text, meanings.get(name) or field.description or "")
        )
    return rows


def group_class(annotation: Any) -> type[BaseModel] | None:
    """The class of a group of settings, or `None` for a single one."""
    for choice in (annotation, *typing.get_args(annotation)):
        if inspect.isclass(choice) and issubclass(choice, BaseModel):
            return choice
    return None


def described(kind: type) -> dict[str, str]:
    """What the `Attributes:` of a class and of its bases say."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, attributes = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", attributes, re.MULTILINE):
            texts[name] = " ".join(text.split())
    return texts


def type_text(annotation: Any) -> str:
    """The possible values, as a person writes them."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(choice) for choice in arguments)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin in (tuple, list):
        return f"list of {type_text(arguments[0])}"
    names = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", type(None): "`null`"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def value_text(value: Any) -> str:
    """A default as YAML writes it; long texts cut."""
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    text = " ".join(str(value).split())
    return "``" if not text else f"`{text if len(text) <= 40 else text[:37] + '...'}`"


def defaults_of(values: dict[str, Any], common: set[str]) -> str:
    """The defaults of the settings that every model has, as this one sets them."""
    shown = [(path, value) for path, value in leaves(values) if path in common]
    lines = [f"| `{path}` | {value_text(value)} |" for path, value in shown]
    return (
        "Its defaults for the settings of every model:\n\n| setting | default |\n|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its path."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def presets_table() -> str:
    """Every cache preset with its summary."""
    rows = []
    for path in sorted((configs_dir() / "cache").glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows.append(f"| `{path.stem}` | {values['summary']} |")
    return "| preset | what it is |\n|---|---|\n" + "\n".join(rows) + "\n"


def codec_tables() -> Iterator[str]:
    """The settings of each scheme."""
    for kind in typing.get_args(CacheConfig.model_fields["k"].annotation):
        fields = {field.name: field for field in dataclasses.fields(kind)}
        scheme = fields.pop("scheme").default
        hints, meanings = typing.get_type_hints(kind), described(kind)
        first = inspect.cleandoc(kind.__doc__ or "").splitlines()[0]
        rows = [
            (f"cache.k.{name}", type_text(hints[name]), value_text(field.default), meanings.get(name, ""))
            for name, field in fields.items()
        ]
        yield f"### {scheme}\n\n{first}\n" + ("\n" + table(rows) if rows else "")


def table(rows: list[Row]) -> str:
    """Rows as a table."""
    lines = [
        f"| `{path}` | {values} | {default} | {cell(meaning)} |" for path, values, default, meaning in rows
    ]
    return "| setting | values | default | meaning |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """A text as it may stand in a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(settings_page())
