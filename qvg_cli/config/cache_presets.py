"""The `cache` section: a preset's name and changes to it become one codec for keys and one for values.

`cache.preset` names a file in configs/cache. A plain setting such as `cache.block_size` changes both codecs,
`cache.k.block_size` only the keys'; `cache.k.preset` takes the keys' codec from another preset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, get_args

from pydantic import TypeAdapter

from qvg_cli.config.resources import config_files
from qvg_cli.config.schema import CacheConfig
from qvg_cli.config.yaml_text import parse_yaml
from qvg_cli.errors import UsageError, known_hint
from qvg_kernels.spec import CodecSpec

SIDES = ("k", "v")
_SETTINGS_OF = {
    spec.scheme: tuple(field.name for field in fields(spec) if field.name != "scheme")
    for spec in get_args(CodecSpec)
}
KNOBS = tuple(dict.fromkeys(name for names in _SETTINGS_OF.values() for name in names))
"""Settings of any scheme."""


def merge_cache(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Lay `(source, cache section)` over one another, the last on top.

    Returns:
        `preset`, `k` and `v` in full, and the section's other settings as they are.

    Raises:
        UsageError: A preset is unknown, or a scheme has no such setting.
    """
    merged: dict[str, Any] = {}
    for source, section in layers:
        # From the general to the special, whatever the order in the file.
        if "preset" in section:
            merged.update(read_preset(section["preset"], source), preset=section["preset"].lower())
        for side in SIDES:
            side_section = _side_section(section, side, source)
            if "preset" in side_section:
                merged[side] = read_preset(side_section["preset"], source)[side]
        for name, value in section.items():
            if name in KNOBS:
                for side in SIDES:
                    _set_knob(merged, side, name, value, source)
            elif name not in (*SIDES, "preset"):
                merged[name] = value
        for side in SIDES:
            changes = {**_side_section(section, side, source)}
            changes.pop("preset", None)
            current = merged.get(side, {})
            is_other_scheme = changes.get("scheme", current.get("scheme")) != current.get("scheme")
            if changes:
                merged[side] = changes if is_other_scheme else {**current, **changes}
    return merged


def read_preset(name: object, source: str) -> dict[str, Any]:
    """Keys' and values' codec of a preset, `{"k": ..., "v": ...}`.

    Raises:
        UsageError: There is no such preset.
    """
    known = config_files("cache")
    if not isinstance(name, str) or name.lower() not in known:
        hint = known_hint(name, known)
        raise UsageError(f"unknown cache preset {str(name)!r} ({source})", hint=hint)
    path = known[name.lower()]
    preset = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    return {side: preset[side] for side in SIDES}


@cache
def codec_adapter() -> TypeAdapter[CodecSpec]:
    """What checks the settings of a codec."""
    return TypeAdapter(CodecSpec)


def cache_label(settings: CacheConfig) -> str:
    """The preset's name for people, and whether the codecs are no longer the preset's."""
    preset = read_preset(settings.preset, "run")
    check = codec_adapter().validate_python
    is_changed = any(check(preset[side]) != getattr(settings, side) for side in SIDES)
    return f"{settings.preset}, changed" if is_changed else settings.preset


def _side_section(section: Mapping[str, Any], side: str, source: str) -> Mapping[str, Any]:
    value = section.get(side, {})
    if not isinstance(value, Mapping):
        raise UsageError(
            f"cache.{side}={value!r} ({source}): cache.{side} is a group of settings",
            hint=f"for a preset's codec, set cache.{side}.preset={value}",
        )
    return value


def _set_knob(merged: dict[str, Any], side: str, name: str, value: Any, source: str) -> None:
    codec = merged.get(side, {})
    known = _SETTINGS_OF.get(codec.get("scheme"), ())
    if name not in known:
        raise UsageError(
            f"cache.{name}={value} ({source}): cache.{side} has scheme {codec.get('scheme')!r} without it",
            hint=f"it has: {', '.join(known)}" if known else "it has no settings; use another preset",
        )
    merged[side] = {**codec, name: value}
