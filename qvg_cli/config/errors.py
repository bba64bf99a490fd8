"""What pydantic found wrong, in the user's words: setting, value, source, limit, nearest name."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from qvg_cli.config.schema import RunConfig
from qvg_cli.errors import UsageError, known_hint
from qvg_kernels.spec import CodecSpec

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_TYPE_WORDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text; put it in quotes",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list, e.g. [1000, 500]",
    "dict_type": "must be a group of settings",
    "model_type": "must be a group of settings",
    "dataclass_type": "must be a group of settings",
}


def describe(
    error: ValidationError, sources: Mapping[str, str], model: type[RunConfig], extra_names: Sequence[str]
) -> UsageError:
    """All problems as one error to show.

    Args:
        sources: Dotted setting to what set it.
        extra_names: Settings that exist beside those of `model`, for nearest names.
    """
    known = [*_setting_names(model), *extra_names]
    lines, hints = [], []
    for problem in error.errors():
        parts = [str(part) for part in problem["loc"]]
        # pydantic puts the scheme of a codec into the location, which no user wrote.
        side = 3 if parts[:2] == ["cache", "layers"] else 1
        if parts[:1] == ["cache"] and parts[side : side + 1] in (["k"], ["v"]):
            del parts[side + 1 : side + 2]
        path = _as_written(".".join(parts), problem, sources)
        source = f" ({sources[path]})" if sources.get(path, path) != path else ""
        line, hint = _describe_one(problem, path, source, known)
        if line not in lines:
            lines.append(line)
        if hint and hint not in hints:
            hints.append(hint)
    message = lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} invalid settings", *lines])
    return UsageError(message, hint="; ".join(hints) or None)


def _describe_one(problem: Any, path: str, source: str, known: Sequence[str]) -> tuple[str, str | None]:
    kind = problem["type"]
    context = problem.get("ctx", {})
    value = problem["input"]
    if kind in _UNKNOWN:
        near = _nearest(path, known)
        return f"unknown setting {path}{source}", f"nearest: {near}" if near else None
    if kind == "missing":
        return f"{path} is not set", None
    if kind == "union_tag_not_found":
        return f"{path}.scheme is not set", f"for a preset's codec, set {path}.preset"
    if kind == "union_tag_invalid":
        hint = known_hint(context["tag"], [spec.scheme for spec in get_args(CodecSpec)], cutoff=0.6)
        return f"unknown {path}.scheme {context['tag']!r}{source}", hint
    if kind == "value_error":
        # A check of several sections names the setting itself.
        return f"{path}{source}: {context['error']}".removeprefix(": "), None
    reason = _TYPE_WORDS.get(kind) or problem["msg"].replace("Input should be", "must be")
    return f"{path}={value!r}{source}: {reason}", None


def _as_written(path: str, problem: Any, sources: Mapping[str, str]) -> str:
    """`cache.bits` for a wrong `cache.k.bits` that came from `cache.bits`, which sets both sides."""
    section, _, rest = path.partition(".")
    side, _, leaf = rest.partition(".")
    if section != "cache" or side not in ("k", "v") or path in sources:
        return path
    written = f"cache.{leaf}"
    if not leaf and problem["type"] == "value_error":
        # A codec's own check names the setting at the beginning of its text.
        leaf, written = str(problem["ctx"]["error"]).partition("=")[0], "cache"
    return written if f"cache.{leaf}" in sources else path


def _setting_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _setting_names(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _nearest(path: str, known: Sequence[str]) -> str | None:
    """The known setting most like `path`: first as a whole, then by its last part."""
    if near := get_close_matches(path, known, n=1, cutoff=0.75):
        return near[0]
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = get_close_matches(path.rpartition(".")[2], by_leaf, n=1)
    return by_leaf[near[0]] if near else None
