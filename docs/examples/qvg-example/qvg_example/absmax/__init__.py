"""Eight bits a value, one scale a token: a scheme as small as one can be."""

from qvg_kernels.codecs.spec import Scheme

from .spec import AbsmaxSpec

SCHEMES = (Scheme(AbsmaxSpec, f"{__name__}.reference:AbsmaxCodec"),)
