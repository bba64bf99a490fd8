"""QuantWM, a peer that knows the queries: they choose a key's centroid and which of its errors are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvg_kernels.codecs.quantwm.spec import QuantWmSpec
from qvg_kernels.codecs.spec import Scheme

if TYPE_CHECKING:
    from qvg_kernels.codec import Codec


def _codec(spec: QuantWmSpec) -> Codec:
    from qvg_kernels.codecs.quantwm.reference import QuantWmCodec

    return QuantWmCodec(spec)


SCHEMES = (Scheme(QuantWmSpec, _codec),)
