"""Every scheme there is: each folder beside this file lists its own as `SCHEMES`, and so do the entry points
`qvg.codecs` of other packages. No torch."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules, resolve_name
from typing import TYPE_CHECKING, Union

from qvg_kernels import codecs
from qvg_kernels.codecs.spec import Scheme, Spec

if TYPE_CHECKING:
    from qvg_kernels.codec import Codec

_FOUND: list[Scheme] = [
    scheme
    for folder in iter_modules(codecs.__path__)
    if folder.ispkg
    for scheme in import_module(f"{codecs.__name__}.{folder.name}").SCHEMES
]
BROKEN: dict[str, str] = {}
"""Why an entry point could not be loaded, by its value."""
for _entry in entry_points(group="qvg.codecs"):
    try:
        _FOUND += _entry.load()
    except Exception as error:
        BROKEN[_entry.value] = f"{type(error).__name__}: {error}"
SCHEMES = {scheme.spec.scheme: scheme for scheme in sorted(_FOUND, key=lambda scheme: scheme.spec.packs)}
"""Schemes by name: those that pack nothing first."""

if TYPE_CHECKING:
    CodecSpec = Spec
else:
    CodecSpec = Union[tuple(scheme.spec for scheme in SCHEMES.values())]  # noqa: UP007
    """The settings of any scheme: pydantic tells them apart by `scheme`."""


def build_codec(spec: Spec) -> Codec:
    """The codec that `spec` describes."""
    codec: Codec = resolve_name(SCHEMES[spec.scheme].codec)(spec)
    return codec
