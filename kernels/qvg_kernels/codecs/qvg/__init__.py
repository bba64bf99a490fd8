"""The scheme of the QVG paper, the mark that the other codecs are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvg_kernels.codecs.qvg.spec import QvgSpec
from qvg_kernels.codecs.spec import Scheme

if TYPE_CHECKING:
    from qvg_kernels.codec import Codec


def _codec(spec: QvgSpec) -> Codec:
    from qvg_kernels.codecs.qvg.reference import QvgCodec

    return QvgCodec(spec)


SCHEMES = (Scheme(QvgSpec, _codec),)
