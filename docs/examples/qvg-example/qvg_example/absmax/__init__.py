"""Eight bits a value, one scale a token: a scheme as small as one can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvg_kernels.codecs.spec import Scheme

from .spec import AbsmaxSpec

if TYPE_CHECKING:
    from qvg_kernels.codec import Codec


def _codec(spec: AbsmaxSpec) -> Codec:
    from .reference import AbsmaxCodec

    return AbsmaxCodec(spec)


SCHEMES = (Scheme(AbsmaxSpec, _codec),)
