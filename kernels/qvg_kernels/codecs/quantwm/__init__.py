"""QuantWM, a peer that knows the queries: they choose a key's centroid and which of its errors are stored."""

from qvg_kernels.codecs.quantwm.spec import QuantWmSpec
from qvg_kernels.codecs.spec import Scheme

SCHEMES = (Scheme(QuantWmSpec, f"{__name__}.reference:QuantWmCodec"),)
