"""The scheme of the QVG paper, the mark that the other codecs are measured against."""

from qvg_kernels.codecs.qvg.spec import QvgSpec
from qvg_kernels.codecs.spec import Scheme

SCHEMES = (Scheme(QvgSpec, f"{__name__}.reference:QvgCodec"),)
