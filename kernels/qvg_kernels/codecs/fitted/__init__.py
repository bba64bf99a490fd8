"""The recommended scheme: what a codebook leaves over, rotated and put on a fitted grid."""

from qvg_kernels.codecs.fitted.spec import FittedSpec
from qvg_kernels.codecs.spec import Scheme

SCHEMES = (Scheme(FittedSpec, f"{__name__}.reference:FittedCodec"),)
