"""The `cache` section: a preset's name and changes to it become one codec for keys and one for values.

`cache.preset` names a file in configs/cache. A plain setting such as `cache.block_size` changes both codecs,
`cache.k.block_size` only the keys'; `cache.k.preset` takes the keys' codec from another preset. What
`cache.layers.2` or `cache.layers.2-5` holds changes the codecs of these layers alone, on top of all that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

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
_BESIDE_CODECS = sorted(CacheConfig.model_fields.keys() - {"preset", "k", "v", "layers"})
_LAYERS = "for example --set cache.layers.2-5.v.preset=trit"
KNOBS = tuple(dict.fromkeys(name for names in _SETTINGS_OF.values() for name in names))
"""Settings of any scheme."""


def merge_cache(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Lay `(source, cache section)` over one another, the last on top; `UsageError` if one is unknown.

    Returns:
        `preset`, `k`, `v` and those of `layers` in full, and the section's other settings as they are.
    """
    merged: dict[str, Any] = {}
    own: dict[int, list[tuple[str, Mapping[str, Any]]]] = {}
    for source, section in layers:
        # From the general to the special, whatever the order in the file.
        if "preset" in section:
            known = read_preset(section["preset"], source)
            own = _by_layer(known.pop("layers", {}), source)
            merged.update(known, preset=section["preset"].lower())
        _merge_sides(merged, section, source)
        merged |= {
            name: value for name, value in section.items() if name not in (*KNOBS, *SIDES, "preset", "layers")
        }
        for number, changes in _by_layer(section.get("layers", {}), source).items():
            own.setdefault(number, []).extend(changes)
    if own:
        merged["layers"] = {}
    for number in sorted(own):
        layer = {side: merged[side] for side in SIDES if side in merged}
        for source, section in own[number]:
            _merge_sides(layer, section, source, f"cache.layers.{number}")
        merged["layers"][number] = layer
    return merged


def _merge_sides(
    merged: dict[str, Any], section: Mapping[str, Any], source: str, path: str = "cache"
) -> None:
    """Change both codecs: first to those of another preset, then by settings of both, then by their own."""
    for side in SIDES:
        own = section.get(side, {})
        if not isinstance(own, Mapping):
            raise UsageError(
                f"{path}.{side}={own!r} ({source}): {path}.{side} is a group of settings",
                hint=f"for a preset's codec, set {path}.{side}.preset={own}",
            )
        codec = read_preset(own["preset"], source)[side] if "preset" in own else merged.get(side, {})
        known = _SETTINGS_OF.get(str(codec.get("scheme")), ())
        both = {name: value for name, value in section.items() if name in KNOBS}
        for name, value in both.items():
            if name not in known:
                raise UsageError(
                    f"cache.{name}={value} ({source}): cache.{side} has scheme {codec.get('scheme')!r} "
                    "without it",
                    hint=f"it has: {', '.join(known)}" if known else "it has no settings; use another preset",
                )
        changes = {name: value for name, value in own.items() if name != "preset"}
        is_other_scheme = changes.get("scheme", codec.get("scheme")) != codec.get("scheme")
        codec = changes if is_other_scheme else {**codec, **both, **changes}
        if codec:
            merged[side] = codec


def _by_layer(section: object, source: str) -> dict[int, list[tuple[str, Mapping[str, Any]]]]:
    """What a section `layers` changes, by number; `2-5` names layers 2 to 5."""
    found: dict[int, list[tuple[str, Mapping[str, Any]]]] = {}
    if not isinstance(section, Mapping):
        raise UsageError(
            f"cache.layers={section!r} ({source}): cache.layers is a group of settings", hint=_LAYERS
        )
    for name, changes in section.items():
        first, _, last = str(name).partition("-")
        is_range = first.isdecimal() and (last.isdecimal() or str(name) == first)
        if not is_range or max(len(first), len(last)) > 4:
            raise UsageError(
                f"cache.layers.{name} ({source}): layers are numbers, such as 2 or 2-5", hint=_LAYERS
            )
        if not isinstance(changes, Mapping) or not set(changes) <= set(SIDES):
            raise UsageError(
                f"cache.layers.{name}={changes!r} ({source}): a layer has codecs k and v", hint=_LAYERS
            )
        for number in range(int(first), int(last or first) + 1):
            found.setdefault(number, []).append((source, changes))
    return found


def read_preset(name: object, source: str) -> dict[str, Any]:
    """The codecs of a preset: `k`, `v`, and `layers` if some have their own; `UsageError` if unknown."""
    known = config_files("cache")
    if not isinstance(name, str) or name.lower() not in known:
        hint = known_hint(name, known)
        raise UsageError(f"unknown cache preset {str(name)!r} ({source})", hint=hint)
    path = known[name.lower()]
    preset = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    return {name: preset[name] for name in (*SIDES, "layers") if name in preset}


def cache_label(settings: CacheConfig) -> str:
    """The preset's name for people, and whether the codecs are no longer the preset's."""
    is_changed = take_preset(settings, settings.preset) != settings
    return f"{settings.preset}, changed" if is_changed else settings.preset


def take_preset(cache: CacheConfig, preset: str) -> CacheConfig:
    """`cache` with the codecs of a preset, as it has them."""
    known = CacheConfig.model_validate(merge_cache([("a preset", {"preset": preset})]))
    return known.model_copy(update={name: getattr(cache, name) for name in _BESIDE_CODECS})
