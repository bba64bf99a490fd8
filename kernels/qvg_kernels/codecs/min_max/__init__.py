"""Peers that round to nearest between the lowest and highest value of a group: RTN, KIVI and QuaRot."""

from qvg_kernels.codecs.min_max.spec import KiviSpec, QuarotSpec, RtnSpec
from qvg_kernels.codecs.spec import Scheme

SCHEMES = (
    Scheme(RtnSpec, f"{__name__}.reference:RtnCodec"),
    Scheme(KiviSpec, f"{__name__}.reference:KiviCodec"),
    Scheme(QuarotSpec, f"{__name__}.reference:QuarotCodec"),
)
