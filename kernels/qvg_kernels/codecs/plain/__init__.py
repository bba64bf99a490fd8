"""Blocks kept as plain numbers: the yardstick that every packed scheme is measured against."""

from qvg_kernels.codecs.plain.spec import Bf16Spec, NoneSpec
from qvg_kernels.codecs.spec import Scheme

SCHEMES = (
    Scheme(NoneSpec, f"{__name__}.reference:PlainCodec"),
    Scheme(Bf16Spec, f"{__name__}.reference:PlainCodec"),
)
