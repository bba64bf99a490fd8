"""Blocks kept as plain numbers: the yardstick that every packed scheme is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvg_kernels.codecs.plain.spec import Bf16Spec, NoneSpec
from qvg_kernels.codecs.spec import Scheme

if TYPE_CHECKING:
    from qvg_kernels.codec import Codec


def _codec(spec: NoneSpec | Bf16Spec) -> Codec:
    from qvg_kernels.codecs.plain.reference import PlainCodec

    return PlainCodec(spec)


SCHEMES = (Scheme(NoneSpec, _codec), Scheme(Bf16Spec, _codec))
