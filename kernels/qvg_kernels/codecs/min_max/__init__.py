"""Peers that round to nearest between the lowest and highest value of a group: RTN, KIVI and QuaRot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvg_kernels.codecs.min_max.spec import KiviSpec, QuarotSpec, RtnSpec
from qvg_kernels.codecs.spec import Scheme

if TYPE_CHECKING:
    from qvg_kernels.codec import Codec


def _codec(spec: RtnSpec | KiviSpec | QuarotSpec) -> Codec:
    from qvg_kernels.codecs.min_max.reference import CODECS

    codec: Codec = CODECS[spec.scheme](spec)
    return codec


SCHEMES = tuple(Scheme(spec, _codec) for spec in (RtnSpec, KiviSpec, QuarotSpec))
